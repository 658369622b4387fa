// C = A·B where both operands are contiguous along the summed dimension and too small, or too thin,
// for packing to pay: every element is a dot product of two rows, some of each at a time.
#pragma once

#include <algorithm>

#include "gemm/operands.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Rows of A and of B that a tile multiplies: its sums, the rows of B and one of A fit the
// registers.
#if defined(__AVX512F__)
inline constexpr int kDotRows = 4, kDotCols = 4;
#else
inline constexpr int kDotRows = 2, kDotCols = 4;
#endif

// Packing touches each number once more; below eight rows, or below what one packed tile computes
// in the time of its packing, reading the operands where they lie is cheaper. A sum of few products
// takes longer to add up over the lanes than to multiply (Zen 3, November 2026).
inline bool dot_products_pay(int64_t m, int64_t n, int64_t k) {
  return (m <= 8 || n <= 16) && k >= 8 * std::min(m, n);
}

// Rows past the last stand for the last: their sums are dropped.
template <int kRows, class Source>
void dot_rows(const Source& source, int64_t i, int64_t (&offsets)[kRows]) {
  for (int r = 0; r < kRows; ++r) {
    offsets[r] = std::min(i + r, source.extent - 1) * source.i_stride;
  }
}

// One row of the tile is a vector, of which kDotCols numbers count: as such it can be read at once.
template <int kRows, class A, class B, class Acc>
void dot_tile(int64_t i, int64_t j, int64_t k, const A& a, const B& b, Acc* tile) {
  using V = Vec<Acc>;
  int64_t a_rows[kRows], b_rows[kDotCols];
  dot_rows(a, i, a_rows);
  dot_rows(b, j, b_rows);
  V sums[kRows][kDotCols];
#pragma GCC unroll 4
  for (auto& row : sums) {
#pragma GCC unroll 4
    for (V& sum : row) sum = V::zero();
  }
  const auto add_products = [&](auto load) {
    V bv[kDotCols];
#pragma GCC unroll 4
    for (int c = 0; c < kDotCols; ++c) bv[c] = load(b, b_rows[c]);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const V av = load(a, a_rows[r]);
#pragma GCC unroll 4
      for (int c = 0; c < kDotCols; ++c) sums[r][c] = V::fma(av, bv[c], sums[r][c]);
    }
  };
  int64_t p = 0;
  for (; p + V::kWidth <= k; p += V::kWidth) {
    add_products([p](const auto& source, int64_t row) { return source.load(row + p); });
  }
  if (p < k) {
    const int rest = static_cast<int>(k - p);
    add_products([p, rest](const auto& source, int64_t row) { return source.load(row + p, rest); });
  }
  for (int r = 0; r < kRows; ++r) V::sums_of(sums[r]).store(tile + r * V::kWidth);
}

template <class A, class B, class Sink>
void dot_products(int64_t m, int64_t n, int64_t k, const A& a, const B& b, const Sink& sink) {
  using Acc = typename A::Acc;
  // Products that pay for waking a thread; with few rows, reading B takes as long as eight.
  constexpr int64_t kRows = kDotRows, kCols = kDotCols, kMinimumWork = 1 << 19;
  constexpr int64_t kLine = Vec<Acc>::kWidth;
  const int64_t work = std::max<int64_t>(1, kCols * std::max<int64_t>(m, 8) * k);
  const int64_t grain = std::max<int64_t>(1, kMinimumWork / work);
  parallel_for(0, ceil_div(n, kCols), grain, [&](int64_t begin, int64_t end) {
    alignas(64) Acc tile[kRows * kLine];
    for (int64_t j = begin * kCols; j < std::min(n, end * kCols); j += kCols) {
      for (int64_t i = 0; i < m; i += kRows) {
        i + 1 < m ? dot_tile<kDotRows>(i, j, k, a, b, tile) : dot_tile<1>(i, j, k, a, b, tile);
        sink(i, j, static_cast<int>(std::min(kRows, m - i)),
             static_cast<int>(std::min(kCols, n - j)), tile, kLine);
      }
    }
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
