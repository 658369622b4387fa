// Rows of bfloat16 as they lie, times a panel of pairs, by AVX-512's dot products.
//
// A broadcast from memory is a load like any other, so that a row's pairs are read where they are.
// 6 rows by 4 vectors are 24 sums in registers: 10 loads serve 24 products, and the panel, which
// passes by once for 6 rows, may come from L2.
#pragma once

#include "gemm/multiply_tiles.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Rows that a panel of so many vectors is multiplied by at a time: at least twelve sums, as many as
// are underway. Groups of 48 rows are multiples of all of them.
constexpr int rows_of_panel(int vecs) { return vecs == 4 ? 6 : vecs == 3 ? 8 : 12; }
inline constexpr int kGroupRows = 48, kLeastRows = 12, kPanelCols = 64;

// Rows [first, last) of those that come next: so many as one of the panels has to ask for.
struct RowsAhead {
  const BFloat16* data;
  int first, last;
};

// The sums over `pairs` of kRows rows of A, `stride` apart, times a panel of kVecs vectors.
template <int kRows, int kVecs>
[[gnu::always_inline]] inline void multiply_row_pairs(int64_t pairs, const BFloat16* a,
                                                      int64_t stride, const uint16_t* b,
                                                      const RowsAhead& ahead,
                                                      __m512 (&sums)[kRows][kVecs]) {
  // A pointer to every third row, for rows that are one or two strides on.
  constexpr int kThird = 3, kPointers = (kRows + kThird - 1) / kThird;
  const BFloat16* rows[kPointers];
#pragma GCC unroll 4
  for (int t = 0; t < kPointers; ++t) rows[t] = a + t * kThird * stride;
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) sums[r][v] = _mm512_setzero_ps();
  }
  const auto add_pair = [&](int further) __attribute__((always_inline)) {
    __m512bh columns[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) columns[v] = (__m512bh)_mm512_load_si512(b + v * 32);
    const auto pair = [&](int r) { return rows[r / kThird] + r % kThird * stride + further; };
    add_products(columns, pair, sums);
    b += kVecs * 32;
    // Loads of the next pair stay behind these products: before them they would need more registers
    // than there are.
    asm volatile("" ::: "memory");
  };
  const auto go_on = [&](int numbers) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int t = 0; t < kPointers; ++t) rows[t] += numbers;
  };
  constexpr int kLine = 32;  // numbers
  const BFloat16* next = ahead.data;
  const auto add_four = [&]() __attribute__((always_inline)) {
    add_pair(0), add_pair(2), add_pair(4), add_pair(6);
    go_on(8);
  };
  for (; pairs >= kTilePairs; pairs -= kTilePairs, next += kLine) {
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      prefetch_to_read(rows[r / kThird] + r % kThird * stride + kLine);
    }
    for (int r = ahead.first; r < ahead.last; ++r) prefetch_to_l2(next + r * stride);
    for (int pair = 0; pair < kTilePairs; pair += 4) add_four();
  }
  for (; pairs >= 4; pairs -= 4) add_four();
  for (; pairs > 0; --pairs) {
    add_pair(0);
    go_on(2);
  }
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
