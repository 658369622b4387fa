// The gradient of a convolution's bias: the sums of grad_y over positions.
#pragma once

#include <array>

#include "conv2d/patches_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Σ over rows of kVectors vectors of columns, by halves: one running sum over a batch would lose
// digits. The last vector has `lanes` columns.
template <int kVectors, bool kMasked, class T>
std::array<Vec<acc_t<T>>, kVectors> sum_rows(const Images<T>& images, int64_t offset,
                                             int64_t stride, int64_t rows, int lanes) {
  using V = Vec<acc_t<T>>;
  std::array<V, kVectors> sums;
  if (rows > 64) {
    const int64_t half = rows / 2, rest = offset + half * stride;
    sums = sum_rows<kVectors, kMasked>(images, offset, stride, half, lanes);
    const auto more = sum_rows<kVectors, kMasked>(images, rest, stride, rows - half, lanes);
    for (int v = 0; v < kVectors; ++v) sums[v] = sums[v] + more[v];
    return sums;
  }
  sums.fill(V::zero());
  for (int64_t i = 0; i < rows; ++i, offset += stride) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int n = v + 1 < kVectors ? V::kWidth : lanes;
      sums[v] = sums[v] + load_masked<T, kMasked>(images, offset + v * V::kWidth, n);
    }
  }
  return sums;
}

// The sum of `count` numbers that follow each other.
template <bool kMasked, class T>
acc_t<T> sum_run(const Images<T>& images, int64_t offset, int64_t count) {
  using V = Vec<acc_t<T>>;
  constexpr int64_t kBlock = 4 * V::kWidth;
  const int64_t blocks = count / kBlock, left = count % kBlock, whole = left / V::kWidth;
  const auto wide = sum_rows<4, kMasked>(images, offset, kBlock, blocks, V::kWidth);
  offset += blocks * kBlock;
  const V rest = sum_rows<1, kMasked>(images, offset, V::kWidth, whole, V::kWidth)[0];
  offset += whole * V::kWidth;
  const V tail = load_masked<T, kMasked>(images, offset, static_cast<int>(left % V::kWidth));
  return (((wide[0] + wide[1]) + (wide[2] + wide[3])) + (rest + tail)).sum();
}

template <class T, bool kMasked>
void backward_bias(const Conv2dBackwardParams& p) {
  using V = Vec<acc_t<T>>;
  const int64_t plane = p.oh * p.ow;
  const Images<T> g{static_cast<const T*>(p.grad_y), static_cast<const T*>(p.y), p.o, p.o, {}, {}};
  auto* bias = static_cast<T*>(p.grad_bias);
  if (!p.channels_last) {
    return parallel_for(0, p.o, 1, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o) {
        acc_t<T> sum = 0;
        for (int64_t n = 0; n < p.n; ++n) sum += sum_run<kMasked>(g, (n * p.o + o) * plane, plane);
        bias[o] = static_cast<T>(sum);
      }
    });
  }
  // A pixel's line of memory is read whole where the channels allow it.
  const auto columns = [&]<int kVectors>(std::integral_constant<int, kVectors>, int64_t o) {
    const int64_t left = p.o - o - (kVectors - 1) * V::kWidth;
    const int lanes = static_cast<int>(std::min<int64_t>(V::kWidth, left));
    const auto sums = sum_rows<kVectors, kMasked>(g, o, p.o, p.n * plane, lanes);
    for (int v = 0; v < kVectors; ++v) {
      sums[v].store(bias + o + v * V::kWidth, v + 1 < kVectors ? V::kWidth : lanes);
    }
  };
  constexpr int64_t kBlock = 4 * V::kWidth;
  parallel_for(0, ceil_div(p.o, kBlock), 1, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin * kBlock; o < std::min(p.o, end * kBlock);) {
      const bool whole = o + kBlock <= p.o;
      whole ? columns(std::integral_constant<int, 4>{}, o)
            : columns(std::integral_constant<int, 1>{}, o);
      o += whole ? kBlock : V::kWidth;
    }
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
