// One window after the other; the backward adds in the order of the outputs.
#include <limits>

#include "core/parallel.h"
#include "core/scratch.h"
#include "max_pool2d/max_pool2d.h"

namespace pyops {
namespace {

// Where plane number `plane` starts and how far its neighbouring elements lie apart.
struct Plane {
  int64_t offset, step;
};

template <class Params>
Plane plane_of(const Params& p, int64_t plane, int64_t area) {
  if (!p.channels_last) return {plane * area, 1};
  return {plane / p.c * area * p.c + plane % p.c, p.c};
}

template <class T, class Where>
void pool_plane(const MaxPool2dParams& p, int64_t plane) {
  using Acc = acc_t<T>;
  const Plane in = plane_of(p, plane, p.h.size * p.w.size), out = plane_of(p, plane, p.oh * p.ow);
  const T* x = static_cast<const T*>(p.x) + in.offset;
  for (int64_t o = 0; o < p.oh * p.ow; ++o) {
    const PoolWindow rows = p.h.window(o / p.ow), cols = p.w.window(o % p.ow);
    Acc best = -std::numeric_limits<Acc>::infinity();
    int64_t tap = rows.first_tap * p.w.kernel + cols.first_tap;
    int64_t index = rows.begin * p.w.size + cols.begin;
    for (int64_t i = rows.begin, ti = rows.first_tap; i < rows.end; i += p.h.dilation, ++ti) {
      for (int64_t j = cols.begin, tj = cols.first_tap; j < cols.end; j += p.w.dilation, ++tj) {
        const Acc v = static_cast<Acc>(x[(i * p.w.size + j) * in.step]);
        if (!(v > best || v != v)) continue;
        best = v;
        tap = ti * p.w.kernel + tj;
        index = i * p.w.size + j;
      }
    }
    static_cast<T*>(p.y)[out.offset + o * out.step] = static_cast<T>(best);
    if (p.argmax == Argmax::kNone) continue;
    static_cast<Where*>(p.where)[out.offset + o * out.step] =
        static_cast<Where>(p.argmax == Argmax::kTap ? tap : index);
  }
}

template <class T, class Where>
void backward_plane(const MaxPool2dBackwardParams& p, int64_t plane,
                    const Scratch<acc_t<T>>& sums) {
  const int64_t area = p.h.size * p.w.size;
  const Plane in = plane_of(p, plane, area), out = plane_of(p, plane, p.oh * p.ow);
  for (int64_t i = 0; i < area; ++i) sums[i] = 0;
  for (int64_t o = 0; o < p.oh * p.ow; ++o) {
    const PoolWindow rows = p.h.window(o / p.ow), cols = p.w.window(o % p.ow);
    if (rows.begin >= rows.end || cols.begin >= cols.end) continue;
    const int64_t at = out.offset + o * out.step;
    int64_t index = static_cast<int64_t>(static_cast<const Where*>(p.where)[at]);
    if (p.argmax == Argmax::kTap) {
      const int64_t i = p.h.start(o / p.ow) + index / p.w.kernel * p.h.dilation;
      index = i * p.w.size + p.w.start(o % p.ow) + index % p.w.kernel * p.w.dilation;
    }
    if (index < 0 || index >= area) continue;
    sums[index] += static_cast<acc_t<T>>(static_cast<const T*>(p.grad_y)[at]);
  }
  T* grad_x = static_cast<T*>(p.grad_x) + in.offset;
  for (int64_t i = 0; i < area; ++i) grad_x[i * in.step] = static_cast<T>(sums[i]);
}

// f(T{}, Where{}) with the types of the elements and of the argmax.
template <class Params, class F>
void dispatch(const Params& p, F&& f) {
  dispatch_dtype(p.dtype,
                 [&](auto t) { p.argmax == Argmax::kIndex ? f(t, int64_t{}) : f(t, uint8_t{}); });
}

}  // namespace

void max_pool2d_forward_scalar(const MaxPool2dParams& p) {
  dispatch(p, [&](auto t, auto where) {
    parallel_for(0, p.n * p.c, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) pool_plane<decltype(t), decltype(where)>(p, i);
    });
  });
}

void max_pool2d_backward_scalar(const MaxPool2dBackwardParams& p) {
  dispatch(p, [&](auto t, auto where) {
    using T = decltype(t);
    parallel_for(0, p.n * p.c, 1, [&](int64_t begin, int64_t end) {
      const Scratch<acc_t<T>> sums(p.h.size * p.w.size);
      for (int64_t i = begin; i < end; ++i) backward_plane<T, decltype(where)>(p, i, sums);
    });
  });
}

}  // namespace pyops
