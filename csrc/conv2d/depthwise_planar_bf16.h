// Depthwise convolutions of bfloat16 planes by 3×3 taps at stride 1 or 2. A register has 32 numbers
// of a row as they lie, and a dot product multiplies a pair of neighbours by a kernel row's first
// two weights. At stride 2 these are the pairs; at stride 1 those of even positions, and a load
// that begins a number further on has those of odd ones. The third weight meets the halves of
// another load in an FMA, as a pair would multiply its neighbour by zero. So nothing is widened,
// padded or shifted beforehand.
#pragma once

#include "conv2d/tile_sums_bf16.h"
#include "conv2d/weights_simd.h"
#include "core/lanes_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Rows that fill at least half a register.
inline bool suits_word_rows(const Images<BFloat16>& images, int stride) {
  const auto suits = [stride](const Axis& a) {
    return a.taps == 3 && a.stride == stride && a.dilation == 1;
  };
  return suits(images.y) && suits(images.x) && images.x.positions >= 16;
}

// Which of the 32 numbers of a row from `at` on are in the image.
inline __mmask32 words_inside(const Axis& x, int64_t at) {
  return first_words(x.size - at) & ~first_words(-at);
}

template <int kStride>
class DepthwiseWordPlanes {
  using V = Vec<float>;
  static constexpr int kRows = 4, kWidth = 32;

 public:
  static bool pays(const Correlation<BFloat16>& c) {
    return !c.channels_last && suits_word_rows(c.images, kStride) &&
           c.images.y.positions >= kRows && c.map.col_stride == 1;
  }

  explicit DepthwiseWordPlanes(const Correlation<BFloat16>& c)
      : c_(c),
        weights_(c_.weights->matrix().data),  // which may only now be put in order
        least_(V::set1(Lines<float>::relu_floor(c_.epilogue.relu))),
        row_step_(c_.map.row_step(c_.images.x.positions)) {}

  void run() const {
    parallel_for(0, c_.batch * c_.channels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) run_plane(plane);
    });
  }

 private:
  struct Plane {
    const BFloat16* image;
    BFloat16* result;
    __m512bh pairs[3];  // of each kernel row the first two weights
    V thirds[3], bias;
  };

  void run_plane(int64_t number) const {
    const Axis &y = c_.images.y, &x = c_.images.x;
    const int64_t n = number / c_.channels, channel = number % c_.channels;
    Plane plane{
        .image = c_.images.data + number * y.size * x.size,
        .result = c_.result + c_.map.offset(n * c_.images.positions_per_image()) +
                  channel * c_.channel_stride,
        .pairs = {},
        .thirds = {},
        .bias = V::set1(c_.epilogue.bias != nullptr ? static_cast<float>(c_.epilogue.bias[channel])
                                                    : 0.0f)};
    for (int ky = 0; ky < 3; ++ky) {
      const BFloat16* weights = weights_ + channel * 9 + ky * 3;
      int32_t pair;
      std::memcpy(&pair, weights, sizeof pair);
      plane.pairs[ky] = (__m512bh)_mm512_set1_epi32(pair);
      plane.thirds[ky] = V::set1(static_cast<float>(weights[2]));
    }
    for (int64_t block = 0; block < y.positions; block += kRows) {
      // The last rows reach back over those before.
      const int64_t qy = std::min(block, y.positions - kRows);
      const bool inside = y.at(qy, 0) >= 0 && y.at(qy + kRows - 1, 2) < y.size;
      for (int64_t q = 0; q < x.positions; q += kWidth) {
        inside ? sum<true>(plane, qy, q) : sum<false>(plane, qy, q);
      }
    }
  }

  // What the first two taps of 32 positions meet, and the third: of even positions and of odd ones,
  // or of 16 positions and of the next. `inside` has the lanes of loads kLoads from the first.
  static constexpr int kLoads[4] = {0, kStride == 1 ? 1 : 32, 2, kStride == 1 ? 2 : 34};
  struct Met {
    __m512i first, second;
    VecPair<float> third;
  };
  static Met meet(const BFloat16* from, const __mmask32 (&inside)[4]) {
    const auto words = [&](int i) { return _mm512_maskz_loadu_epi16(inside[i], from + kLoads[i]); };
    if constexpr (kStride == 1) return {words(0), words(1), split_words((Lanes<float>)words(2))};
    const auto widened = [&](int i) {
      return V{_mm512_castsi512_ps(_mm512_slli_epi32(words(i), 16))};
    };
    return {words(0), words(1), {widened(2), widened(3)}};
  }
  // As bfloat16, in order.
  static __m512i in_order(const VecPair<float>& x) {
    return kStride == 1 ? join_words(x) : (__m512i)_mm512_cvtne2ps_pbh(x.second.v, x.first.v);
  }

  // kRows rows of up to 32 positions; kInside: none of their taps is above or below the image.
  template <bool kInside>
  [[gnu::always_inline]] void sum(const Plane& plane, int64_t qy, int64_t q) const {
    const Axis &y = c_.images.y, &x = c_.images.x;
    __mmask32 inside[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) inside[i] = words_inside(x, x.at(q, 0) + kLoads[i]);
    const int64_t next_plane = y.size * x.size;
    VecPair<float> sums[kRows];
#pragma GCC unroll 4
    for (auto& s : sums) s = {V::zero(), V::zero()};
    const BFloat16* from = plane.image + y.at(qy, 0) * x.size + x.at(q, 0);
#pragma GCC unroll 9
    for (int i = 0; i < (kRows - 1) * kStride + 3; ++i, from += x.size) {
      if (!kInside && (y.at(qy, i) < 0 || y.at(qy, i) >= y.size)) continue;
      prefetch_to_read(from + next_plane);
      const Met x_row = meet(from, inside);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const int ky = i - r * kStride;
        if (ky < 0 || ky >= 3) continue;
        auto& [first, second] = sums[r];
        first.v = _mm512_dpbf16_ps(first.v, (__m512bh)x_row.first, plane.pairs[ky]);
        second.v = _mm512_dpbf16_ps(second.v, (__m512bh)x_row.second, plane.pairs[ky]);
        first = V::fma(x_row.third.first, plane.thirds[ky], first);
        second = V::fma(x_row.third.second, plane.thirds[ky], second);
      }
    }
    BFloat16* to = plane.result + qy * row_step_ + q;
    const __mmask32 some = first_words(x.positions - q);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r, to += row_step_) {
      prefetch_to_write(to + kAhead);
      _mm512_mask_storeu_epi16(to, some,
                               in_order({V::max(least_, sums[r].first + plane.bias),
                                         V::max(least_, sums[r].second + plane.bias)}));
    }
  }

  static constexpr int64_t kAhead = 512;

  const Correlation<BFloat16>& c_;
  const BFloat16* const weights_;
  const V least_;
  const int64_t row_step_;
};

// Their weight gradient: pairs of positions, of which a register of the gradient meets nine loads
// of the image, three at a time.
class DepthwiseWordWeights {
 public:
  static bool pays(const Images<BFloat16>& x) { return suits_word_rows(x, 1); }

  DepthwiseWordWeights(const Images<BFloat16>& x, const Images<BFloat16>& gradient)
      : x_(x), gradient_(gradient) {}

  void run(int64_t batch, BFloat16* grad_weight) const {
    const int64_t plane = x_.y.size * x_.x.size, positions = x_.positions_per_image();
    parallel_for(0, x_.channels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t channel = begin; channel < end; ++channel) {
        float sums[9] = {};
        for (int64_t n = 0; n < batch; ++n) {
          const int64_t image = n * x_.channels + channel;
          for (int64_t q = 0; q < x_.x.positions; q += 32) {
            add(x_.data + image * plane, gradient_.data + image * positions, q, sums);
          }
        }
        for (int t = 0; t < 9; ++t) grad_weight[channel * 9 + t] = static_cast<BFloat16>(sums[t]);
      }
    });
  }

 private:
  // Positions from q on of all rows of a plane.
  void add(const BFloat16* image, const BFloat16* gradient, int64_t q, float (&sums)[9]) const {
    const Axis &y = x_.y, &x = x_.x;
    const __mmask32 some = first_words(x.positions - q);
    // Beyond the row may lie what a zero does not silence.
    __mmask32 inside[3];
#pragma GCC unroll 3
    for (int kx = 0; kx < 3; ++kx) inside[kx] = some & words_inside(x, x.at(q, kx));
    __m512 products[9];
#pragma GCC unroll 9
    for (__m512& p : products) p = _mm512_setzero_ps();
    const auto gradient_row = [&](int64_t row) {
      const __mmask32 lanes = row >= 0 && row < y.positions ? some : 0;
      return _mm512_maskz_loadu_epi16(lanes, gradient + row * x.positions + q);
    };
    const int64_t plane = y.size * x.size, first = -y.at(0, 0);
    // What tap ky of the rows of positions `row - ky` meets, once the first is the next.
    __m512i g[3] = {gradient_row(first - 1), gradient_row(first - 2)};
    for (int64_t row = first, iy = 0; iy < y.size; ++iy, ++row) {
      g[2] = g[1], g[1] = g[0], g[0] = gradient_row(row);
      const BFloat16* from = image + iy * x.size + x.at(q, 0);
      prefetch_to_read(from + plane);
      prefetch_to_read(gradient + (row + y.positions) * x.positions + q);
      __m512i of_tap[3];
#pragma GCC unroll 3
      for (int kx = 0; kx < 3; ++kx) of_tap[kx] = _mm512_maskz_loadu_epi16(inside[kx], from + kx);
#pragma GCC unroll 3
      for (int ky = 0; ky < 3; ++ky) {
        if (row - ky < 0 || row - ky >= y.positions) continue;
#pragma GCC unroll 3
        for (int kx = 0; kx < 3; ++kx) {
          __m512& sum = products[ky * 3 + kx];
          sum = _mm512_dpbf16_ps(sum, (__m512bh)g[ky], (__m512bh)of_tap[kx]);
        }
      }
    }
    for (int t = 0; t < 9; ++t) sums[t] += _mm512_reduce_add_ps(products[t]);
  }

  const Images<BFloat16>&x_, &gradient_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
