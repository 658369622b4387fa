// dot_products.h for bfloat16, by AVX-512's products of pairs: half the instructions of widening.
//
// A few rows, which stay in a cache, meet the many of a matrix that is read once; from memory, at
// its speed. Of 4096 numbers by 14336 rows, one row took 2.4 ms where widening took 2.9, eight took
// 3.0 instead of 4.4 (Zen 5, two threads, November 2026).
#pragma once

#include <type_traits>

#include "gemm/dot_products.h"
#include "gemm/vector_engine.h"
#include "gemm/word_tiles.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

inline constexpr int kFewDotRows = 8;

// Of the many, met by so many of the few: their sums and a vector of each fit the registers.
constexpr int many_dot_rows(int few) { return few == 1 ? 8 : few <= 4 ? 6 : few <= 6 ? 4 : 3; }

// Sums of few[f] · many[m], in rows of a vector each as dot_tile() gives them: of the few, or if
// these are columns, of the many.
template <int kFew, bool kFewAreRows>
class DotPairs {
  static constexpr int kMany = many_dot_rows(kFew), kLine = Vec<float>::kWidth;
  static constexpr int kRows = kFewAreRows ? kFew : kMany, kCols = kFewAreRows ? kMany : kFew;

 public:
  using Rows = StridedOperand<BFloat16>;

  // Of the many from row i on; rows past the last stand for it.
  static void multiply(const Rows& few, const Rows& many, int64_t i, int64_t k, float* tile) {
    int64_t few_rows[kFew], many_rows[kMany];
    dot_rows(few, 0, few_rows);
    dot_rows(many, i, many_rows);
    Vec<float> sums[kRows][kCols];
    clear<float>(sums);
    const auto add = [&](int64_t p, auto load) __attribute__((always_inline)) {
      __m512bh row[kMany];
#pragma GCC unroll 8
      for (int r = 0; r < kMany; ++r) {
        row[r] = load(many.data + many_rows[r] + p);
        prefetch_to_read(many.data + many_rows[r] + p + kAhead);
      }
#pragma GCC unroll 8
      for (int c = 0; c < kFew; ++c) {
        const __m512bh x = load(few.data + few_rows[c] + p);
#pragma GCC unroll 8
        for (int r = 0; r < kMany; ++r) {
          __m512& sum = sums[kFewAreRows ? c : r][kFewAreRows ? r : c].v;
          sum = _mm512_dpbf16_ps(sum, x, row[r]);
        }
      }
    };
    int64_t p = 0;
    for (; p + kStep <= k; p += kStep) {
      add(p, [](const BFloat16* at) { return (__m512bh)_mm512_loadu_si512(at); });
    }
    if (p < k) {
      const __mmask32 rest = first_words(k - p);
      add(p, [rest](const BFloat16* at) { return (__m512bh)_mm512_maskz_loadu_epi16(rest, at); });
    }
    store_sums(sums, tile);
  }

 private:
  static constexpr int64_t kStep = 32, kAhead = 512;  // numbers

  static void store_sums(const Vec<float> (&sums)[kRows][kCols], float* tile) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int c = 0; c < kCols; c += 4) {
        Vec<float> four[4];
#pragma GCC unroll 4
        for (int e = 0; e < 4; ++e) four[e] = sums[r][std::min(c + e, kCols - 1)];
        Vec<float>::sums_of(four).store(tile + r * kLine + c);
      }
    }
  }
};

// Of at most kFewDotRows rows or columns.
template <class Sink>
void dot_pairs(int64_t m, int64_t n, int64_t k, const StridedOperand<BFloat16>& a,
               const StridedOperand<BFloat16>& b, const Sink& sink) {
  // With few rows, reading the others takes as long as eight.
  constexpr int64_t kMinimumWork = 1 << 19, kLine = Vec<float>::kWidth;
  const auto run = [&]<int kFew, bool kFewAreRows>(std::integral_constant<int, kFew>,
                                                   std::bool_constant<kFewAreRows>) {
    constexpr int64_t kMany = many_dot_rows(kFew);
    const auto &few = kFewAreRows ? a : b, &many = kFewAreRows ? b : a;
    const int64_t rows = std::max(m, n);
    const int64_t grain = std::max<int64_t>(1, kMinimumWork / (kMany * kFewDotRows * k));
    parallel_for(0, ceil_div(rows, kMany), grain, [&](int64_t begin, int64_t end) {
      alignas(64) float tile[(std::max<int64_t>(kFew, kMany) + 1) * kLine];
      for (int64_t i = begin * kMany; i < std::min(rows, end * kMany); i += kMany) {
        const int some = static_cast<int>(std::min(kMany, rows - i));
        DotPairs<kFew, kFewAreRows>::multiply(few, many, i, k, tile);
        kFewAreRows ? sink(0, i, kFew, some, tile, kLine) : sink(i, 0, some, kFew, tile, kLine);
      }
    });
  };
  with_constant<kFewDotRows>(std::min(m, n), [&](auto few) {
    m <= n ? run(few, std::true_type{}) : run(few, std::false_type{});
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
