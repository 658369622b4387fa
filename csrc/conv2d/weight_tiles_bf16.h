// Weights as GridCorrelation (correlate_bf16.h) packs them, a panel of 32 channels at a time.
#pragma once

#include <optional>

#include "conv2d/grid_simd.h"
#include "conv2d/weights_simd.h"
#include "gemm/tile_engine.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// For products with images in planes: rows of A.
template <class Engine, class T>
class PlaneWeight {
 public:
  explicit PlaneWeight(const Correlation<T>& c)
      : matrix_(c.weights->matrix()), depth_(c.images.taps()) {}

  // Whether the engine's parts represent the panel from `channel` on.
  bool pack(Engine& engine, int64_t channel, uint16_t* out) const {
    return engine.pack_a(matrix_, channel, 0, depth_, out);
  }

 private:
  const StridedOperand<T> matrix_;
  const int64_t depth_;
};

// The depth of a product: taps whose numbers follow each other make a run, and every run whole
// steps of 32. What a run's last step holds beyond it meets weights of zero.
struct PixelRuns {
  int64_t count, length;

  explicit PixelRuns(const Images<BFloat16>& images)
      : count(images.y.taps), length(images.x.taps * images.channels) {
    if (images.x.dilation > 1) count *= images.x.taps, length = images.channels;
  }
  int64_t steps_per_run() const { return ceil_div(length, 32); }
  int64_t steps() const { return count * steps_per_run(); }
  // Whether nothing beyond a run is read: without a matrix unit no further pairs.
  bool exact() const { return length % (kMatrixUnit ? 32 : 2) == 0; }
  int pairs(int64_t begin) const {
    return static_cast<int>(std::min<int64_t>(kTilePairs, (length - begin + 1) / 2));
  }
};

// Every third word of 96: x[0], x[3], … of x[0] to x[2]; then x[1], x[4], … and x[2], x[5], …
class Thirds {
 public:
  Thirds() {
    for (int r = 0; r < 3; ++r) {
      alignas(64) uint16_t of_two[32], of_rest[32];
      for (int i = 0; i < 32; ++i) {
        const int word = 3 * i + r;
        of_two[i] = static_cast<uint16_t>(word % 64);
        of_rest[i] = static_cast<uint16_t>(word < 64 ? i : word - 32);
      }
      of_two_[r] = _mm512_load_si512(of_two), of_rest_[r] = _mm512_load_si512(of_rest);
    }
  }

  __m512i third(int r, const __m512i (&x)[3]) const {
    const __m512i of_two = _mm512_permutex2var_epi16(x[0], of_two_[r], x[1]);
    return _mm512_permutex2var_epi16(of_two, of_rest_[r], x[2]);
  }

 private:
  __m512i of_two_[3], of_rest_[3];
};

// The weights of planes lie tap by tap in lines of up to 32 channels. Which lanes of which vectors
// of a line are a tap's?
class TapLanes {
 public:
  explicit TapLanes(const Weights<BFloat16>& weights)
      : kernel_(weights.kernel()),
        window_(weights.window()),
        taps_(window_),
        from_(window_ * 32),
        lanes_(window_ * kernel_) {
    std::fill_n(lanes_.get(), window_ * kernel_, 0);
    weights.for_taps([&](int64_t t, int64_t at) {
      taps_[t] = at;
      if (kernel_ == 9) return;  // split_nine() needs no more
      for (int64_t i = 0; i < 32; ++i) {
        const int64_t word = at + i * kernel_;
        from_[t * 32 + i] = static_cast<uint16_t>(word % 32);
        lanes_[t * kernel_ + word / 32] |= __mmask32{1} << i;
      }
    });
  }

  // Tap t of a line's channels to to + t * distance; `ahead` of the line lies what comes next.
  void split(const BFloat16* line, int64_t channels, int64_t ahead, uint16_t* to,
             int64_t distance) const {
    for (int64_t w = 0; w < kernel_; ++w) prefetch_to_read(line + ahead + w * 32);
    if (channels == 32) return split(line, ~__mmask32{0}, to, distance);
    const Scratch<BFloat16> whole(kernel_ * 32);
    std::memcpy(whole.get(), line, sizeof(BFloat16) * channels * kernel_);
    split(whole.get(), first_words(channels), to, distance);
  }

 private:
  void split(const BFloat16* line, __mmask32 channels, uint16_t* to, int64_t distance) const {
    kernel_ == 9 ? split_nine(line, channels, to, distance)
                 : split_any(line, channels, to, distance);
  }

  // Thirds of thirds: four permutations a tap, where lanes from nine vectors are nine.
  void split_nine(const BFloat16* line, __mmask32 channels, uint16_t* to, int64_t distance) const {
    const Thirds thirds;
    __m512i thirds_of[3][3], taps[9];
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      const __m512i words[3] = {_mm512_loadu_si512(line + i * 96),
                                _mm512_loadu_si512(line + i * 96 + 32),
                                _mm512_loadu_si512(line + i * 96 + 64)};
#pragma GCC unroll 3
      for (int r = 0; r < 3; ++r) thirds_of[r][i] = thirds.third(r, words);
    }
#pragma GCC unroll 9
    for (int tap = 0; tap < 9; ++tap) taps[tap] = thirds.third(tap / 3, thirds_of[tap % 3]);
    for (int64_t t = 0; t < window_; ++t) {
      _mm512_mask_storeu_epi16(to + t * distance, channels, taps[taps_[t]]);
    }
  }

  void split_any(const BFloat16* line, __mmask32 channels, uint16_t* to, int64_t distance) const {
    for (int64_t t = 0; t < window_; ++t) {
      const __m512i from = _mm512_load_si512(&from_[t * 32]);
      __m512i tap = _mm512_setzero_si512();
      for (int64_t w = 0; w < kernel_; ++w) {
        tap = _mm512_mask_permutexvar_epi16(tap, lanes_[t * kernel_ + w], from,
                                            _mm512_loadu_si512(line + w * 32));
      }
      _mm512_mask_storeu_epi16(to + t * distance, channels, tap);
    }
  }

  const int64_t kernel_, window_;
  Scratch<int64_t> taps_;
  Scratch<uint16_t> from_;
  Scratch<__mmask32> lanes_;
};

// For products with pixels: tiles of B, their depth in the order (ky, kx, image's channel). They
// are made of the weights where they lie, be they those of a forward or of an input gradient; those
// of planes are put in order first, as many of the image's channels at a time as steps end with.
class PixelWeight {
 public:
  explicit PixelWeight(const Correlation<BFloat16>& c)
      : weights_(*c.weights),
        channels_(c.channels),
        images_(c.images.channels),
        in_place_((weights_.is_forward() ? weights_.image_stride() : weights_.channel_stride()) ==
                  1),
        share_(!in_place_ && images_ % 32 == 0 ? 32 : images_),
        depth_(weights_.window() * share_),
        run_(share_ < images_ ? share_ : PixelRuns(c.images).length),
        places_(depth_) {
    if (!in_place_) lanes_.emplace(weights_);
    // A band that zeros may not meet is done from patches, whose weights no thread may copy.
    if (!PixelRuns(c.images).exact()) weights_.matrix();
    weights_.for_taps([&](int64_t t, int64_t at) {
      for (int64_t j = 0; j < share_; ++j) {
        const int64_t d = t * share_ + j;
        places_[d] = in_place_ ? at + j * weights_.image_stride() : d * 32;
      }
    });
  }

  // The tiles of 32 channels from `channel` on.
  bool pack(TileEngine<1>&, int64_t channel, uint16_t* out) const {
    const int64_t some = std::min<int64_t>(32, channels_ - channel);
    const Scratch<uint16_t> ordered(lanes_ ? depth_ * 32 : 0);
    const void* in_memory = weights_.line(channel, 0);
    const auto* from = in_place_ ? static_cast<const uint16_t*>(in_memory) : ordered.get();
    for (int64_t j = 0; j < images_; j += share_) {
      if (weights_.is_forward()) {
        if (lanes_) order_rows(*lanes_, channel, some, j, ordered.get());
        pack_rows(from, some, j, out);
      } else {
        if (lanes_) order_columns(*lanes_, channel, some, j, ordered.get());
        pack_columns(from, some, j, out);
      }
    }
    return true;
  }

 private:
  // Of channels that each have a row of the depth, and of a depth whose numbers each have a row of
  // channels: a share of the image's channels, from j on.
  void order_rows(const TapLanes& lanes, int64_t channel, int64_t some, int64_t j,
                  uint16_t* ordered) const {
    for (int64_t i = 0; i < some; ++i, ordered += depth_) {
      for (int64_t k = 0; k < share_; k += 32) {
        lanes.split(weights_.line(channel + i, j + k), std::min<int64_t>(32, share_ - k),
                    kAhead * 32 * weights_.kernel(), ordered + k, share_);
      }
    }
  }
  void order_columns(const TapLanes& lanes, int64_t channel, int64_t some, int64_t j,
                     uint16_t* ordered) const {
    for (int64_t k = 0; k < share_; ++k) {
      lanes.split(weights_.line(channel, j + k), some, kAhead * weights_.image_stride(),
                  ordered + k * 32, share_ * 32);
    }
  }

  void pack_rows(const uint16_t* rows, int64_t some, int64_t j, uint16_t* out) const {
    for_steps(j, out, [&](int64_t d, int64_t numbers, uint16_t* tiles) {
      for (int64_t i = 0; i < 32; i += kTileRows, tiles += kTileElements) {
        const auto row = [&](int r) {
          return _mm512_maskz_loadu_epi16(i + r < some ? first_words(numbers) : 0,
                                          rows + (i + r) * depth_ + d);
        };
        pack_tile_rows<false>(row, tiles);
      }
    });
  }
  void pack_columns(const uint16_t* columns, int64_t some, int64_t j, uint16_t* out) const {
    const __mmask32 lanes = first_words(some);
    for_steps(j, out, [&](int64_t d, int64_t numbers, uint16_t* tiles) {
      const auto column = [&](int p) {
        return p < numbers ? _mm512_maskz_loadu_epi16(lanes, columns + places_[d + p])
                           : _mm512_setzero_si512();
      };
      pack_tile_columns<false>(column, tiles, tiles + kTileElements);
    });
  }

  // f(a step's first number of the share's depth, how many it has, its tiles)
  template <class F>
  void for_steps(int64_t j, uint16_t* out, const F& f) const {
    constexpr int64_t kStep = 2 * kTileElements;
    const int64_t shares = images_ / share_;
    uint16_t* tiles = out + j / share_ * kStep;
    for (int64_t d = 0; d < depth_; d += run_) {
      for (int64_t i = 0; i < run_; i += 32, tiles += shares * kStep) {
        f(d + i, std::min<int64_t>(32, run_ - i), tiles);
      }
    }
  }

  static constexpr int64_t kAhead = 4;  // lines that come from L3 meanwhile

  const Weights<BFloat16>& weights_;
  const int64_t channels_, images_;
  const bool in_place_;
  const int64_t share_, depth_, run_;
  std::optional<TapLanes> lanes_;  // unless in place
  Scratch<int64_t> places_;        // of the depth, among columns
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
