// The gradient of a convolution's bias: the sums of grad_y over positions.
#pragma once

#include "conv2d/conv2d.h"
#include "gemm/column_sums_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// The sum of `count` numbers that follow each other.
template <class T, bool kMasked>
acc_t<T> sum_run(StridedOperand<T, kMasked> g, int64_t offset, int64_t count) {
  using V = Vec<acc_t<T>>;
  constexpr int64_t kBlock = 4 * V::kWidth;
  const int64_t blocks = count / kBlock, left = count % kBlock, whole = left / V::kWidth;
  g.i_stride = kBlock;
  const auto wide = sum_rows<4>(g, offset, blocks, V::kWidth);
  offset += blocks * kBlock;
  g.i_stride = V::kWidth;
  const V rest = sum_rows<1>(g, offset, whole, V::kWidth)[0];
  offset += whole * V::kWidth;
  const V tail = g.load(offset, static_cast<int>(left % V::kWidth));
  return (((wide[0] + wide[1]) + (wide[2] + wide[3])) + (rest + tail)).sum();
}

template <class T, bool kMasked>
void backward_bias(const Conv2dBackwardParams& p) {
  const int64_t plane = p.oh * p.ow;
  const StridedOperand<T, kMasked> g{static_cast<const T*>(p.grad_y), p.n * plane, p.o, 1,
                                     static_cast<const T*>(p.y)};
  auto* bias = static_cast<T*>(p.grad_bias);
  if (p.channels_last) return column_sums(g, p.o, bias);
  parallel_for(0, p.o, 1, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      acc_t<T> sum = 0;
      for (int64_t n = 0; n < p.n; ++n) sum += sum_run(g, (n * p.o + o) * plane, plane);
      bias[o] = static_cast<T>(sum);
    }
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
