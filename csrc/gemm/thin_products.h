// C = A·B of few rows, which leave packing B little to be shared by: B is read where it lies, along
// its rows, and the numbers of A are broadcast.
#pragma once

#include <algorithm>

#include "core/scratch.h"
#include "gemm/operands.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// A tile's sums, the vectors of B and one number of A fit the registers.
#if defined(__AVX512F__)
inline constexpr int kThinRows = 4, kThinVecs = 4;
#else
inline constexpr int kThinRows = 4, kThinVecs = 3;
#endif

// Each number of B that is packed is used by m products, each of C that is stored holds k. Below
// this many, moving the number is what takes the time (Sapphire Rapids, November 2026).
inline constexpr int64_t kThin = 16;

// A source whose columns j, j + 1, … can lie side by side in memory.
template <class Source>
concept ColumnReadable = requires(const Source& s) {
  s.i_stride;
  s.load(int64_t{}, 0);
};

// sums[r][v] = or += Σ_p a[p * kThinRows + r] · b[p, j + v], `depth` rows of B from row p on.
template <int kVecs, bool kWhole, bool kAdd, class B, class Acc>
void thin_tile(const Acc* a, const B& b, int64_t j, int64_t p, int64_t depth, int last, Acc* sums,
               int64_t ld) {
  using V = Vec<Acc>;
  V acc[kThinRows][kVecs];
#pragma GCC unroll 4
  for (int r = 0; r < kThinRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      acc[r][v] = kAdd ? V::load(sums + r * ld + v * V::kWidth) : V::zero();
    }
  }
  int64_t at = j + p * b.p_stride;
  for (int64_t q = 0; q < depth; ++q, at += b.p_stride, a += kThinRows) {
    V row[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      const int64_t from = at + v * V::kWidth;
      row[v] = v + 1 < kVecs || kWhole ? b.load(from) : b.load(from, last);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kThinRows; ++r) {
      const V x = V::set1(a[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) acc[r][v] = V::fma(x, row[v], acc[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kThinRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[r][v].store(sums + r * ld + v * V::kWidth);
  }
}

// The same for columns [j, j + cols), cols at most kThinVecs vectors.
template <bool kAdd, class B, class Acc>
void thin_columns(const Acc* a, const B& b, int64_t j, int64_t cols, int64_t p, int64_t depth,
                  Acc* sums, int64_t ld) {
  constexpr int kV = Vec<Acc>::kWidth;
  const int vecs = static_cast<int>(ceil_div(cols, kV));
  const int last = static_cast<int>(cols) - (vecs - 1) * kV;
  const auto tile = [&](auto n) {
    constexpr int kVecs = decltype(n)::value;
    last == kV ? thin_tile<kVecs, true, kAdd>(a, b, j, p, depth, last, sums, ld)
               : thin_tile<kVecs, false, kAdd>(a, b, j, p, depth, last, sums, ld);
  };
  if constexpr (kThinVecs == 4) {
    if (vecs == 4) return tile(std::integral_constant<int, 4>{});
  }
  if (vecs == 3) return tile(std::integral_constant<int, 3>{});
  if (vecs == 2) return tile(std::integral_constant<int, 2>{});
  tile(std::integral_constant<int, 1>{});
}

// Few rows: B is read once, some rows of it at a time, so that memory sees long runs. Sums over a
// stretch of the depth are added to the total, which keeps float32's accuracy.
template <class A, class B, class Sink>
void thin_rows(int64_t m, int64_t n, int64_t k, const A& a, const B& b, const Sink& sink) {
  using Acc = typename A::Acc;
  constexpr int64_t kCols = kThinVecs * Vec<Acc>::kWidth, kBlock = 16, kStretch = 128;
  constexpr int64_t kMostCols = 16 * kCols, kMinimumWork = 1 << 19;
  const int64_t panels = ceil_div(m, kThinRows), rows = panels * kThinRows;
  Cuts ranges{n, kCols, ceil_div(n, kMostCols)};
  ranges.share_among(num_threads());
  const int64_t range = ranges.longest();
  Scratch<Acc> packed(rows * k);
  for (int64_t i = 0; i < panels; ++i) {
    a.template pack<kThinRows>(i * kThinRows, 0, k, &packed[i * kThinRows * k]);
  }
  const int64_t work = range * std::max<int64_t>(m, 8) * std::max<int64_t>(k, 1);
  const int64_t grain = std::max<int64_t>(1, kMinimumWork / work);
  parallel_for(0, ranges.count, grain, [&](int64_t begin, int64_t end) {
    Scratch<Acc> sums(rows * range), totals(rows * range);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t j0 = ranges.begin(part), cols = ranges.end(part) - j0;
      std::fill_n(totals.get(), rows * range, Acc{0});
      for (int64_t stretch = 0; stretch < k; stretch += kStretch) {
        std::fill_n(sums.get(), rows * range, Acc{0});
        const int64_t stop = std::min(k, stretch + kStretch);
        for (int64_t p = stretch; p < stop; p += kBlock) {
          for (int64_t j = 0; j < cols; j += kCols) {
            for (int64_t i = 0; i < panels; ++i) {
              thin_columns<true>(&packed[(i * k + p) * kThinRows], b, j0 + j,
                                 std::min(kCols, cols - j), p, std::min(kBlock, stop - p),
                                 &sums[i * kThinRows * range + j], range);
            }
          }
        }
        for (int64_t e = 0; e < rows * range; ++e) totals[e] += sums[e];
      }
      for (int64_t j = 0; j < cols; j += kCols) {
        sink(0, j0 + j, static_cast<int>(m), static_cast<int>(std::min(kCols, cols - j)),
             &totals[j], range);
      }
    }
  });
}

// Little depth too: B is packed once, and rows of C are written once, in long runs.
template <class A, class B, class Sink>
void thin_depth(int64_t m, int64_t n, int64_t k, const A& a, const B& b, const Sink& sink) {
  using Acc = typename A::Acc;
  constexpr int64_t kCols = kThinVecs * Vec<Acc>::kWidth, kMinimumWork = 1 << 16;
  Scratch<Acc> columns(ceil_div(n, kCols) * kCols * k);
  pack_whole<kCols>(b, n, k, columns.get());
  const int64_t grain = std::max<int64_t>(1, kMinimumWork / (kThinRows * n));
  parallel_for(0, ceil_div(m, kThinRows), grain, [&](int64_t begin, int64_t end) {
    Acc rows[kThinRows * kThin];
    alignas(64) Acc tile[kThinRows * kCols];
    for (int64_t i = begin * kThinRows; i < std::min(m, end * kThinRows); i += kThinRows) {
      a.template pack<kThinRows>(i, 0, k, rows);
      for (int64_t j = 0; j < n; j += kCols) {
        const int64_t cols = std::min(kCols, n - j);
        const StridedOperand<Acc> panel{columns.get() + j * k, kCols, 1, kCols};
        thin_columns<false>(rows, panel, 0, cols, 0, k, tile, kCols);
        sink(i, j, static_cast<int>(std::min<int64_t>(kThinRows, m - i)), static_cast<int>(cols),
             tile, kCols);
      }
    }
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
