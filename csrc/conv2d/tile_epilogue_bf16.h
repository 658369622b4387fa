// What becomes of the sums of tiles on their way to a result: bias, ReLU, rounding.
#pragma once

#include "conv2d/geometry_simd.h"
#include "gemm/lines.h"
#include "gemm/word_tiles.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// The bias as floats, and ReLU. The matrix unit's sums meet the bias at last; those of registers
// begin with it.
class TileEpilogue {
 public:
  TileEpilogue(const Epilogue<BFloat16>& epilogue, int64_t channels)
      : bias_(ceil_div(channels, 32) * 32),
        relu_(epilogue.relu),
        least_(Vec<float>::set1(Lines<float>::relu_floor(epilogue.relu))) {
    for (int64_t c = 0; c < ceil_div(channels, 32) * 32; ++c) {
      const bool some = epilogue.bias != nullptr && c < channels;
      bias_[c] = some ? static_cast<float>(epilogue.bias[c]) : 0.0f;
    }
  }

  const float* bias(int64_t channel) const { return &bias_[channel]; }

  // 32 sums of a row.
  __m512i words(const float* sums, Vec<float> low_bias, Vec<float> high_bias) const {
    return narrow(at_least(sums, low_bias), at_least(sums + 16, high_bias));
  }

  // 32 finished sums of each row; 16 where there is one vector of sums.
  template <int kRows, int kVecs>
  [[gnu::always_inline]] void finish(const __m512 (&sums)[kRows][kVecs],
                                     __m512i (&words)[kRows]) const {
    relu_ ? finish<true>(sums, words) : finish<false>(sums, words);
  }

  // (a[i], b[i]) of 16 channels.
  __m512i pairs(const float* a, const float* b, Vec<float> bias) const {
    return interleave_halves(narrow(at_least(a, bias), at_least(b, bias)));
  }

 private:
  template <bool kRelu, int kRows, int kVecs>
  [[gnu::always_inline]] static void finish(const __m512 (&sums)[kRows][kVecs],
                                            __m512i (&words)[kRows]) {
    const auto at_least_zero = [](__m512 x) {
      return kRelu ? Vec<float>::max(Vec<float>::zero(), {x}) : Vec<float>{x};
    };
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      words[r] = narrow(at_least_zero(sums[r][0]), at_least_zero(sums[r][kVecs - 1]));
    }
  }

  // max returns its second operand for NaN, which keeps NaN as ReLU does.
  Vec<float> at_least(const float* sums, Vec<float> bias) const {
    return at_least(Vec<float>::load(sums), bias);
  }
  Vec<float> at_least(Vec<float> sums, Vec<float> bias) const {
    return Vec<float>::max(least_, sums + bias);
  }
  static __m512i narrow(Vec<float> low, Vec<float> high) {
    return (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v);
  }

  Scratch<float> bias_;
  const bool relu_;
  const Vec<float> least_;
};

// f(r) of the first `count` of kRows rows, at once where these are all.
template <int kRows, class F>
[[gnu::always_inline]] inline void for_rows(int count, const F& f) {
  if (count >= kRows) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) f(r);
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < kRows - 1; ++r) {
      if (r < count) f(r);
    }
  }
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
