// Depthwise convolutions by square windows whose results have rows as long as the image's. A plane
// is one run of numbers then, and what a tap meets is the same run begun further on or before: rows
// of any length fill registers. Masks, the same for all planes, leave out what lies beyond an edge.
#pragma once

#include "conv2d/weights_simd.h"
#include "core/lanes_simd.h"
#if defined(__AVX512BF16__)
#include "conv2d/tile_sums_bf16.h"
#endif

namespace pyops::PYOPS_ISA_NAMESPACE {

template <class T>
bool is_run(const Images<T>& images, int taps) {
  const auto suits = [taps](const Axis& a) {
    return a.taps == taps && a.stride == 1 && a.dilation == 1;
  };
  return suits(images.y) && suits(images.x) && images.x.positions == images.x.size;
}
// Whose results are runs too.
template <class T>
bool is_run(const Correlation<T>& c, int taps) {
  return !c.channels_last && is_run(c.images, taps) && c.map.col_stride == 1 &&
         c.map.row_step(c.images.x.positions) == c.images.x.positions;
}

// Where the first position's first tap is, which may be in no image.
template <class T>
int64_t origin_of(const Images<T>& images) {
  return images.y.origin * images.x.size + images.x.origin;
}

// Which lanes of what the taps of a vector of positions load are in the image: of each row of taps,
// a mask for every load.
class RunMasks {
 public:
  // lanes(load, met), where met(kx) has the bits of the positions that meet the image with that
  // column of taps, and with the row in question.
  template <class LanesOf>
  RunMasks(const Axis& y, const Axis& x, int width, const LanesOf& lanes)
      : y_(y),
        x_(x),
        width_(width),
        vectors_(ceil_div(y.positions * x.positions, width)),
        inside_(vectors_inside()),
        masks_(vectors_ * y.taps * x.taps) {
    const Scratch<uint32_t> columns(x.taps);
    uint32_t* to = masks_.get();
    for (int64_t v = 0; v < vectors_; ++v) {
      for (int64_t kx = 0; kx < x.taps; ++kx) columns[kx] = of_column(v, kx);
      for (int64_t ky = 0; ky < y.taps; ++ky) {
        const uint32_t row = of_row(v, ky);
        for (int load = 0; load < x.taps; ++load) {
          *to++ = lanes(load, [&](int64_t kx) { return columns[kx] & row; });
        }
      }
    }
  }

  // f(inside, masks, first position, positions) for every vector, where inside says that all rows
  // of taps have the same masks.
  template <class F>
  [[gnu::always_inline]] void each(const F& f) const {
    const uint32_t* masks = masks_.get();
    const int64_t positions = y_.positions * x_.positions, width = width_;
    const int64_t step = y_.taps * x_.taps, begin = inside_.begin * width,
                  end = inside_.end * width;
    for (int64_t at = 0; at < positions; at += width, masks += step) {
      const int64_t count = std::min(width, positions - at);
      const bool whole = begin <= at && at < end;
      whole ? f(std::true_type{}, masks, at, count) : f(std::false_type{}, masks, at, count);
    }
  }

 private:
  // Vectors all of whose rows of taps are in the image.
  Inside vectors_inside() const {
    const Inside first = positions_inside(y_, 0), last = positions_inside(y_, y_.taps - 1);
    const int64_t begin = ceil_div(first.begin * x_.positions, width_);
    return {begin, std::max(begin, last.end * x_.positions / width_)};
  }

  // Bits of those positions of the run that are among the vector's.
  uint32_t bits(int64_t v, int64_t begin, int64_t end) const {
    const auto below = [&](int64_t position) {
      const int64_t n = std::clamp<int64_t>(position - v * width_, 0, width_);
      return static_cast<uint32_t>((uint64_t{1} << n) - 1);
    };
    return below(end) & ~below(begin);
  }
  uint32_t of_row(int64_t v, int64_t ky) const {
    const Inside rows = positions_inside(y_, ky);
    return bits(v, rows.begin * x_.positions, rows.end * x_.positions);
  }
  uint32_t of_column(int64_t v, int64_t kx) const {
    const Inside columns = positions_inside(x_, kx);
    uint32_t mask = 0;
    for (int64_t row = v * width_ / x_.positions;
         row < y_.positions && row * x_.positions < (v + 1) * width_; ++row) {
      const int64_t first = row * x_.positions;
      mask |= bits(v, first + columns.begin, first + columns.end);
    }
    return mask;
  }

  const Axis y_, x_;
  const int64_t width_, vectors_;
  const Inside inside_;
  const Scratch<uint32_t> masks_;  // (vector, row of taps, load)
};

// f(image, weights, bias, result) for every plane, shared out.
template <class T, class F>
void for_planes(const Correlation<T>& c, const F& f) {
  const Axis &y = c.images.y, &x = c.images.x;
  const T* const weights = c.weights->matrix().data;
  const int64_t plane = y.size * x.size, taps = y.taps * x.taps;
  parallel_for(0, c.batch * c.channels, 1, [&](int64_t begin, int64_t end) {
    int64_t n = begin / c.channels, channel = begin % c.channels;
    const T* image = c.images.data + begin * plane;
    for (int64_t i = begin; i < end; ++i, image += plane) {
      const acc_t<T> bias =
          c.epilogue.bias != nullptr ? static_cast<acc_t<T>>(c.epilogue.bias[channel]) : 0;
      f(image, weights + channel * taps, bias,
        c.result + n * c.map.image_stride + channel * c.channel_stride);
      if (++channel == c.channels) channel = 0, ++n;
    }
  });
}

#if defined(__AVX512F__)

// Of the lanes that meet the image.
inline __m512 load_met(const float* p, uint32_t lanes) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes), p);
}
inline __m512 add_products(__m512 sum, __m512 a, __m512 b) { return _mm512_fmadd_ps(a, b, sum); }

// Larger windows have more masks than registers, and groups of channels are as fast
// (depthwise_groups_simd.h).
class DepthwiseRuns {
  using V = Vec<float>;
  static constexpr int kTaps = 3;

 public:
  static bool pays(const Correlation<float>& c) { return is_run(c, kTaps); }

  explicit DepthwiseRuns(const Correlation<float>& c)
      : c_(c),
        masks_(c.images.y, c.images.x, V::kWidth, [](int kx, const auto& met) { return met(kx); }),
        least_(V::set1(Lines<float>::relu_floor(c.epilogue.relu))) {}

  void run() const {
    for_planes(c_, [this](const float* image, const float* weights, float bias, float* result) {
      V taps[kTaps * kTaps];
#pragma GCC unroll 9
      for (int t = 0; t < kTaps * kTaps; ++t) taps[t] = V::set1(weights[t]);
      const V start = V::set1(bias), least = least_;
      const int64_t line = c_.images.x.size, origin = origin_of(c_.images);
      masks_.each([&](auto inside, const uint32_t* masks, int64_t at,
                      int64_t count) __attribute__((always_inline)) {
        const V y = V::max(least, sum<inside.value>(image + origin + at, line, masks, taps, start));
        prefetch_to_write(result + at + kAhead);
        count == V::kWidth ? y.store(result + at) : y.store(result + at, static_cast<int>(count));
      });
    });
  }

 private:
  template <bool kInside>
  [[gnu::always_inline]] static V sum(const float* from, int64_t line, const uint32_t* masks,
                                      const V (&taps)[kTaps * kTaps], V start) {
    prefetch_to_read(from + kAskedAhead);
    V sums[] = {start, V::zero()};  // in turn, for a product waits for the sum before
#pragma GCC unroll 3
    for (int ky = 0; ky < kTaps; ++ky, from += line) {
#pragma GCC unroll 3
      for (int kx = 0; kx < kTaps; ++kx) {
        const V x{load_met(from + kx, masks[(kInside ? 0 : ky * kTaps) + kx])};
        V& sum = sums[(ky * kTaps + kx) % 2];
        sum = V::fma(taps[ky * kTaps + kx], x, sum);
      }
    }
    return sums[0] + sums[1];
  }

  static constexpr int64_t kAhead = 256, kAskedAhead = 1024;

  const Correlation<float>& c_;
  const RunMasks masks_;
  const V least_;
};

#endif

#if defined(__AVX512BF16__)

inline __m512i load_met(const BFloat16* p, uint32_t lanes) {
  return _mm512_maskz_loadu_epi16(lanes, p);
}
inline __m512 add_products(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

// bfloat16 by dot products of pairs, as in depthwise_planar_bf16.h: a tap and the next one of a
// row, for even positions and for odd ones; the last tap by an FMA.
template <int kTaps>
class DepthwiseWordRuns {
  using V = Vec<float>;
  static constexpr int kWidth = 32, kPairs = kTaps / 2;

 public:
  // Rows that fill registers are quicker row by row, and tiny planes of large windows, all of whose
  // vectors have masks of their own, by groups of channels (depthwise_groups_simd.h).
  static bool pays(const Correlation<BFloat16>& c) {
    constexpr int64_t kLongRow = 32, kFewPositions = kTaps > 3 ? 128 : 0;
    return is_run(c, kTaps) && c.images.x.size <= kLongRow &&
           c.images.y.size * c.images.x.size >= kFewPositions;
  }

  explicit DepthwiseWordRuns(const Correlation<BFloat16>& c)
      : c_(c),
        masks_(c.images.y, c.images.x, kWidth,
               [](int i, const auto& met) { return lanes(i, met); }),
        least_(V::set1(Lines<float>::relu_floor(c.epilogue.relu))) {}

  void run() const {
    for_planes(
        c_, [this](const BFloat16* image, const BFloat16* weights, float bias, BFloat16* result) {
          Window window;
          for (int ky = 0; ky < kTaps; ++ky, weights += kTaps) {
            for (int t = 0; t < kPairs; ++t) {
              int32_t pair;
              std::memcpy(&pair, weights + 2 * t, sizeof pair);
              window.pairs[ky][t] = _mm512_set1_epi32(pair);
            }
            window.last[ky] = V::set1(static_cast<float>(weights[kTaps - 1]));
          }
          window.bias = V::set1(bias);
          const V least = least_;
          const int64_t line = c_.images.x.size, origin = origin_of(c_.images);
          masks_.each([&](auto inside, const uint32_t* masks, int64_t at,
                          int64_t count) __attribute__((always_inline)) {
            const auto [even, odd] = sum<inside.value>(image + origin + at, line, masks, window);
            prefetch_to_write(result + at + kAhead);
            _mm512_mask_storeu_epi16(result + at, first_words(count),
                                     join_words({V::max(least, even), V::max(least, odd)}));
          });
        });
  }

 private:
  struct Window {
    __m512i pairs[kTaps][kPairs];
    V last[kTaps], bias;
  };

  // A load that begins at an even tap has that and the next one of even positions side by side, one
  // that begins at an odd tap those of odd positions; and the last the last tap of all.
  template <class Met>
  static uint32_t lanes(int load, const Met& met) {
    constexpr uint32_t kEven = 0x55555555;
    if (load == kTaps - 1) return met(load);
    const uint32_t first = met(load / 2 * 2), second = met(load / 2 * 2 + 1);
    return load % 2 == 0 ? (first & kEven) | (second & kEven) << 1
                         : (first & ~kEven) >> 1 | (second & ~kEven);
  }

  template <bool kInside>
  [[gnu::always_inline]] static VecPair<float> sum(const BFloat16* from, int64_t line,
                                                   const uint32_t* masks, const Window& window) {
    prefetch_to_read(from + kAskedAhead);
    // Of each pair of taps and of the last, for a product waits for the sum before.
    VecPair<float> sums[kPairs + 1];
#pragma GCC unroll 4
    for (auto& s : sums) s = {V::zero(), V::zero()};
#pragma GCC unroll 7
    for (int ky = 0; ky < kTaps; ++ky, from += line) {
      const auto words = [&](int i) {
        return load_met(from + i, masks[(kInside ? 0 : ky * kTaps) + i]);
      };
#pragma GCC unroll 3
      for (int t = 0; t < kPairs; ++t) {
        auto& [even, odd] = sums[t];
        even.v = add_products(even.v, words(2 * t), window.pairs[ky][t]);
        odd.v = add_products(odd.v, words(2 * t + 1), window.pairs[ky][t]);
      }
      const auto x = split_words((Lanes<float>)words(kTaps - 1));
      auto& [even, odd] = sums[kPairs];
      even = V::fma(x.first, window.last[ky], even);
      odd = V::fma(x.second, window.last[ky], odd);
    }
    V even = sums[0].first + window.bias, odd = sums[0].second + window.bias;
#pragma GCC unroll 3
    for (int t = 1; t <= kPairs; ++t) even = even + sums[t].first, odd = odd + sums[t].second;
    return {even, odd};
  }

  static constexpr int64_t kAhead = 512, kAskedAhead = 2048;

  const Correlation<BFloat16>& c_;
  const RunMasks masks_;
  const V least_;
};

#endif

#if defined(__AVX512F__)

// Their weight gradient: a vector of the gradient meets nine loads of the image, images in their
// order.
template <class T>
class DepthwiseRunWeights {
  static constexpr int kTaps = 3, kWidth = 64 / sizeof(T);

 public:
  // Longer rows are quicker row by row.
  static bool pays(const Images<T>& x) {
    constexpr int64_t kLongRow = 32;
    return is_run(x, kTaps) && x.x.size <= kLongRow;
  }

  DepthwiseRunWeights(const Images<T>& x, const Images<T>& gradient)
      : x_(x),
        gradient_(gradient),
        masks_(x.y, x.x, kWidth, [](int kx, const auto& met) { return met(kx); }) {}

  void run(int64_t batch, T* grad_weight) const {
    const int64_t plane = x_.y.size * x_.x.size, positions = x_.positions_per_image();
    const int64_t origin = origin_of(x_);
    parallel_for(0, x_.channels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t channel = begin; channel < end; ++channel) {
        __m512 sums[kTaps * kTaps];  // of images, whose own are short, as their errors are
#pragma GCC unroll 9
        for (__m512& s : sums) s = _mm512_setzero_ps();
        for (int64_t n = 0; n < batch; ++n) {
          const int64_t number = n * x_.channels + channel;
          add(x_.data + number * plane + origin, gradient_.data + number * positions, sums);
        }
        for (int t = 0; t < kTaps * kTaps; ++t) {
          grad_weight[channel * kTaps * kTaps + t] = static_cast<T>(_mm512_reduce_add_ps(sums[t]));
        }
      }
    });
  }

 private:
  [[gnu::always_inline]] void add(const T* image, const T* gradient,
                                  __m512 (&sums)[kTaps * kTaps]) const {
    __m512 image_sums[kTaps * kTaps];
#pragma GCC unroll 9
    for (__m512& s : image_sums) s = _mm512_setzero_ps();
    const int64_t line = x_.x.size;
    const int64_t next_x = x_.channels * x_.y.size * line;  // the image that comes next
    const int64_t next_gradient = x_.channels * x_.positions_per_image();
    masks_.each([&](auto inside, const uint32_t* masks, int64_t at,
                    int64_t count) __attribute__((always_inline)) {
      const T* from = image + at;
      prefetch_to_read(from + next_x);
      prefetch_to_read(gradient + at + next_gradient);
      const auto g = load_met(gradient + at, static_cast<uint32_t>((uint64_t{1} << count) - 1));
#pragma GCC unroll 3
      for (int ky = 0; ky < kTaps; ++ky, from += line) {
#pragma GCC unroll 3
        for (int kx = 0; kx < kTaps; ++kx) {
          const auto x = load_met(from + kx, masks[(inside.value ? 0 : ky * kTaps) + kx]);
          __m512& sum = image_sums[ky * kTaps + kx];
          sum = add_products(sum, g, x);
        }
      }
    });
#pragma GCC unroll 9
    for (int t = 0; t < kTaps * kTaps; ++t) sums[t] = _mm512_add_ps(sums[t], image_sums[t]);
  }

  const Images<T>&x_, &gradient_;
  const RunMasks masks_;
};

#endif

}  // namespace pyops::PYOPS_ISA_NAMESPACE
