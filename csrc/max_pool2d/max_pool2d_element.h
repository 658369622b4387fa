// One element of the output, and one of the gradient, for any window, layout and dtype: the oracle
// on the CPU and the general kernels of CUDA compute by these.
#pragma once

#include <limits>

#include "max_pool2d/max_pool2d.h"

namespace pyops {

// Where plane number `plane` starts and how far its neighbouring elements lie apart.
struct Plane {
  int64_t offset, step;
};

template <class Params>
PYOPS_HOST_DEVICE inline Plane plane_of(const Params& p, int64_t plane, int64_t area) {
  if (!p.channels_last) return {plane * area, 1};
  return {plane / p.c * area * p.c + plane % p.c, p.c};
}

// The maximum of what was taken in the order of the window, and its place.
template <class Acc, class Code>
struct Maximum {
  Acc value;
  Code where;

  PYOPS_HOST_DEVICE void take(Acc v, Code here) {
    const bool wins = v > value || v != v;
    value = wins ? v : value;
    where = wins ? here : where;
  }
};

// Output number `o` of a plane. `Where` is the type of what `argmax` asks for.
template <class T, class Where>
PYOPS_HOST_DEVICE inline void pool_element(const MaxPool2dParams& p, int64_t plane, int64_t o) {
  using Acc = acc_t<T>;
  const Plane in = plane_of(p, plane, p.h.size * p.w.size), out = plane_of(p, plane, p.oh * p.ow);
  const T* x = static_cast<const T*>(p.x) + in.offset;
  const PoolWindow rows = p.h.window(o / p.ow), cols = p.w.window(o % p.ow);
  // As taps of the kernel, or as elements of the plane.
  const bool taps = p.argmax == Argmax::kTap;
  const int64_t row_step = taps ? p.w.kernel : p.h.dilation * p.w.size;
  const int64_t step = taps ? 1 : p.w.dilation;
  int64_t row_code =
      taps ? rows.first_tap * p.w.kernel + cols.first_tap : rows.begin * p.w.size + cols.begin;
  Maximum<Acc, int64_t> best{-std::numeric_limits<Acc>::infinity(), row_code};
  for (int64_t i = rows.begin; i < rows.end; i += p.h.dilation, row_code += row_step) {
    int64_t code = row_code;
    for (int64_t j = cols.begin; j < cols.end; j += p.w.dilation, code += step) {
      best.take(static_cast<Acc>(x[(i * p.w.size + j) * in.step]), code);
    }
  }
  const int64_t at = out.offset + o * out.step;
  static_cast<T*>(p.y)[at] = static_cast<T>(best.value);
  if (p.argmax != Argmax::kNone) static_cast<Where*>(p.where)[at] = static_cast<Where>(best.where);
}

// The gradient of input (i, j) of a plane: what the windows over it send it, in their order.
template <class T, class Where>
PYOPS_HOST_DEVICE inline void gather_element(const MaxPool2dBackwardParams& p, int64_t plane,
                                             int64_t i, int64_t j) {
  const Plane in = plane_of(p, plane, p.h.size * p.w.size), out = plane_of(p, plane, p.oh * p.ow);
  const PoolCovering rows = p.h.covering(i, p.oh), cols = p.w.covering(j, p.ow);
  acc_t<T> sum = 0;
  for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
    const int64_t ti = p.h.tap_at(oh, i);
    if (ti < 0) continue;
    for (int64_t ow = cols.begin; ow < cols.end; ++ow) {
      const int64_t tj = p.w.tap_at(ow, j);
      if (tj < 0) continue;
      const int64_t at = out.offset + (oh * p.ow + ow) * out.step;
      const int64_t here = p.argmax == Argmax::kTap ? ti * p.w.kernel + tj : i * p.w.size + j;
      if (static_cast<int64_t>(static_cast<const Where*>(p.where)[at]) != here) continue;
      sum += static_cast<acc_t<T>>(static_cast<const T*>(p.grad_y)[at]);
    }
  }
  static_cast<T*>(p.grad_x)[in.offset + (i * p.w.size + j) * in.step] = static_cast<T>(sum);
}

}  // namespace pyops
