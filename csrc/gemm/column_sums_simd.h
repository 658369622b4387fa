// Sums of a matrix's columns, the gradient of a bias: several vectors of a row at a time, so that
// whole lines of memory are read; and rows by halves, as one running sum of many would lose digits.
#pragma once

#include <array>

#include "core/scratch.h"
#include "gemm/operands.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Over `rows` rows, g.i_stride apart, of kVecs vectors at `offset`, the last of which has `lanes`
// columns.
template <int kVecs, class T, bool kMasked>
std::array<Vec<acc_t<T>>, kVecs> sum_rows(const StridedOperand<T, kMasked>& g, int64_t offset,
                                          int64_t rows, int lanes) {
  using V = Vec<acc_t<T>>;
  std::array<V, kVecs> sums;
  if (rows > 64) {
    const int64_t half = rows / 2;
    sums = sum_rows<kVecs>(g, offset, half, lanes);
    const auto more = sum_rows<kVecs>(g, offset + half * g.i_stride, rows - half, lanes);
    for (int v = 0; v < kVecs; ++v) sums[v] = sums[v] + more[v];
    return sums;
  }
#pragma GCC unroll 4
  for (V& sum : sums) sum = V::zero();
  for (int64_t i = 0; i < rows; ++i, offset += g.i_stride) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      const int64_t at = offset + v * V::kWidth;
      sums[v] = sums[v] + (v + 1 < kVecs || lanes == V::kWidth ? g.load(at) : g.load(at, lanes));
    }
  }
  return sums;
}

// sums[j] = Σ_i g[i, j] for j from `begin` to `end`, over `rows` rows from `first` on.
template <class T, bool kMasked, class To>
void sum_some_columns(const StridedOperand<T, kMasked>& g, int64_t first, int64_t rows,
                      int64_t begin, int64_t end, To* sums) {
  constexpr int64_t kWidth = Vec<acc_t<T>>::kWidth;
  const int64_t offset = first * g.i_stride;
  int64_t j = begin;
  for (; j + 4 * kWidth <= end; j += 4 * kWidth) {
    const auto some = sum_rows<4>(g, offset + j, rows, kWidth);
    for (int v = 0; v < 4; ++v) some[v].store(sums + j + v * kWidth);
  }
  for (; j < end; j += kWidth) {
    const int n = static_cast<int>(std::min(kWidth, end - j));
    sum_rows<1>(g, offset + j, rows, n)[0].store(sums + j, n);
  }
}

// sums[j] = Σ_i g[i, j] over all rows. Where columns are few, the rows are cut too, for any number
// of threads alike.
template <class T, bool kMasked, class To>
void column_sums(const StridedOperand<T, kMasked>& g, int64_t columns, To* sums) {
  using Acc = acc_t<T>;
  constexpr int64_t kBlock = 4 * Vec<Acc>::kWidth, kFewBlocks = 8, kParts = 8, kManyRows = 1024;
  constexpr int64_t kWorthATask = 32 << 10;  // elements
  const int64_t blocks = ceil_div(columns, kBlock);
  const bool cut = blocks < kFewBlocks && g.extent >= kManyRows;
  const int64_t parts = cut ? kParts : 1, rows = ceil_div(g.extent, parts);
  const int64_t grain = ceil_div(kWorthATask, std::max<int64_t>(1, rows * kBlock));
  Scratch<Acc> partial(cut ? parts * columns : 0);
  parallel_for(0, parts * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task / blocks, j = task % blocks * kBlock, first = part * rows;
      const int64_t some = std::min(rows, g.extent - first), last = std::min(columns, j + kBlock);
      cut ? sum_some_columns(g, first, some, j, last, partial.get() + part * columns)
          : sum_some_columns(g, first, some, j, last, sums);
    }
  });
  if (cut) column_sums(StridedOperand<Acc>{partial.get(), parts, columns, 1}, columns, sums);
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
