// Depthwise convolutions of bfloat16 planes by 3×3 taps at stride 1. A register has 32 numbers of a
// row as they lie, and a dot product multiplies a pair of neighbours by a kernel row's first two
// weights: those that begin at even positions from one load, at odd ones from another, a number
// further on. The third weight meets the halves of a third load in an FMA, as a pair would multiply
// its neighbour by zero. So nothing is widened, padded or shifted beforehand.
#pragma once

#include "conv2d/tile_sums_bf16.h"
#include "conv2d/weights_simd.h"
#include "core/lanes_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Rows that fill at least half a register.
inline bool suits_word_rows(const Images<BFloat16>& images) {
  const auto three = [](const Axis& a) { return a.taps == 3 && a.stride * a.dilation == 1; };
  return three(images.y) && three(images.x) && images.x.positions >= 16;
}

// Which of 32 numbers of a row are in the image that tap kx of the positions from q on meets.
inline __mmask32 words_inside(const Axis& x, int64_t q, int kx) {
  const int64_t at = x.at(q, kx);
  return first_words(x.size - at) & ~first_words(-at);
}

class DepthwiseWordPlanes {
  using V = Vec<float>;
  static constexpr int kRows = 4, kWidth = 32;

 public:
  static bool pays(const Correlation<BFloat16>& c) {
    return suits_word_rows(c.images) && c.images.y.positions >= kRows && c.map.col_stride == 1;
  }

  explicit DepthwiseWordPlanes(const Correlation<BFloat16>& c)
      : c_(c),
        weights_(c_.weights->matrix().data),  // which may only now be put in order
        least_(V::set1(Lines<float>::relu_floor(c_.epilogue.relu))),
        row_step_(c_.map.cols > c_.images.x.positions ? c_.images.x.positions : c_.map.row_stride) {
  }

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

  // kRows rows of up to 32 positions; kInside: none of their taps is above or below the image.
  template <bool kInside>
  [[gnu::always_inline]] void sum(const Plane& plane, int64_t qy, int64_t q) const {
    const Axis &y = c_.images.y, &x = c_.images.x;
    const __mmask32 inside[3] = {words_inside(x, q, 0), words_inside(x, q, 1),
                                 words_inside(x, q, 2)};
    const int64_t next_plane = y.size * x.size;
    VecPair<float> sums[kRows];
#pragma GCC unroll 4
    for (auto& s : sums) s = {V::zero(), V::zero()};
    const BFloat16* from = plane.image + y.at(qy, 0) * x.size + x.at(q, 0);
#pragma GCC unroll 6
    for (int i = 0; i < kRows + 2; ++i, from += x.size) {
      if (!kInside && (y.at(qy, i) < 0 || y.at(qy, i) >= y.size)) continue;
      prefetch_to_read(from + next_plane);
      const __m512i even = _mm512_maskz_loadu_epi16(inside[0], from),
                    odd = _mm512_maskz_loadu_epi16(inside[1], from + 1),
                    third = _mm512_maskz_loadu_epi16(inside[2], from + 2);
      const VecPair<float> thirds = split_words((Lanes<float>)third);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const int ky = i - r;
        if (ky < 0 || ky >= 3) continue;
        sums[r].first.v = _mm512_dpbf16_ps(sums[r].first.v, (__m512bh)even, plane.pairs[ky]);
        sums[r].second.v = _mm512_dpbf16_ps(sums[r].second.v, (__m512bh)odd, plane.pairs[ky]);
        sums[r].first = V::fma(thirds.first, plane.thirds[ky], sums[r].first);
        sums[r].second = V::fma(thirds.second, plane.thirds[ky], sums[r].second);
      }
    }
    BFloat16* to = plane.result + qy * row_step_ + q;
    const __mmask32 some = first_words(x.positions - q);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r, to += row_step_) {
      prefetch_to_write(to + kAhead);
      _mm512_mask_storeu_epi16(to, some,
                               join_words({V::max(least_, sums[r].first + plane.bias),
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
  static bool pays(const Images<BFloat16>& x) { return suits_word_rows(x); }

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
    const __mmask32 inside[3] = {some & words_inside(x, q, 0), some & words_inside(x, q, 1),
                                 some & words_inside(x, q, 2)};
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
