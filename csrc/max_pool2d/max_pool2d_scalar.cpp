// One window after the other; the backward adds in the order of the outputs.
#include "core/parallel.h"
#include "core/scratch.h"
#include "max_pool2d/max_pool2d_element.h"

namespace pyops {
namespace {

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
      for (int64_t plane = begin; plane < end; ++plane) {
        for (int64_t o = 0; o < p.oh * p.ow; ++o) {
          pool_element<decltype(t), decltype(where)>(p, plane, o);
        }
      }
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
