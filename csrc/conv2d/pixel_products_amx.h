// Products of an image of pixels (pixel_image_amx.h) with packed weights: the rows of a tile are
// positions, its columns output channels.
//
// While the unit works on one tile of 32×32 sums, the vector units bring the one before it to its
// place, some rows after each step: done in one piece they would wait for each other.
#pragma once

#include "conv2d/grid_sink_amx.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

inline __mmask32 first_words(int64_t n) {
  return n >= 32 ? ~__mmask32{0} : (__mmask32{1} << std::max<int64_t>(n, 0)) - 1;
}

// 32 positions of an image, `row` elements apart, of which `count` are wanted: step s is 32 numbers
// of each from offsets[s] on.
struct PixelTiles {
  const uint16_t* image;
  const int64_t* offsets;
  int64_t row;
  int count;
};

// Where `count` positions of up to 32 channels of a result lie: position r at out + offsets[r], or
// nowhere when that is negative.
struct PixelPlace {
  BFloat16* out = nullptr;
  const int64_t* offsets = nullptr;
  const float* bias = nullptr;
  int count = 0;
  __mmask32 lanes = 0;
};

// 32×32 finished sums on their way to the result.
class PixelSums {
 public:
  PixelSums(const Epilogue<BFloat16>& epilogue, int64_t channels)
      : channels_(channels),
        bias_(ceil_div(channels, 32) * 32),
        least_(Vec<float>::set1(epilogue.relu ? 0.0f : -__builtin_inff())) {
    for (int64_t c = 0; c < ceil_div(channels, 32) * 32; ++c) {
      const bool some = epilogue.bias != nullptr && c < channels;
      bias_[c] = some ? static_cast<float>(epilogue.bias[c]) : 0.0f;
    }
  }

  // Sums now being made, of channels from `channel` on, will lie at out + offsets.
  void expect(BFloat16* out, int64_t channel, const int64_t* offsets, int count) {
    coming_ = {out + channel, offsets, &bias_[channel], count, first_words(channels_ - channel)};
    row_ = 0;
  }
  // They are made.
  void take(const float* sums) {
    sums_ = sums;
    now_ = coming_;
    coming_.count = row_ = 0;
  }

  // The next `rows` of those made. The lines of those to come are asked for: without it the unit
  // waits behind stores that miss (a fifth more time for 3×3 32 → 64 of 48×48, Sapphire Rapids,
  // November 2026).
  void store(int rows) {
    using V = Vec<float>;
    const V low_bias = V::load(now_.bias), high_bias = V::load(now_.bias + 16);
    const int last = row_ + rows;
    for (int r = row_; r < std::min(now_.count, last); ++r) {
      // max returns its second operand for NaN, which keeps NaN as ReLU does.
      const V low = V::max(least_, V::load(sums_ + r * 32) + low_bias);
      const V high = V::max(least_, V::load(sums_ + r * 32 + 16) + high_bias);
      const __m512i words = (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v);
      const int64_t offset = now_.offsets[r];
      if (offset >= 0) _mm512_mask_storeu_epi16(now_.out + offset, now_.lanes, words);
    }
    for (int r = row_; r < std::min(coming_.count, last); ++r) {
      if (coming_.offsets[r] >= 0) __builtin_prefetch(coming_.out + coming_.offsets[r], 1, 3);
    }
    row_ = last;
  }

 private:
  const int64_t channels_;
  Scratch<float> bias_;
  const Vec<float> least_;
  const float* sums_ = nullptr;
  PixelPlace now_{.bias = bias_.get()}, coming_;
  int row_ = 0;
};

// The sums of 32 positions and 32 (kWide) or 16 channels; between() after each step.
template <bool kWide, class Between>
void multiply_pixels(int64_t steps, const PixelTiles& a, const int64_t* offsets, const uint16_t* b,
                     float* sums, bool add, const Between& between) {
  const int64_t row = a.row * static_cast<int64_t>(sizeof(uint16_t));
  const uint16_t *upper = a.image, *lower = a.image + 16 * a.row;
  if (add) {
    _tile_loadd(0, sums, 128);
    if (kWide) _tile_loadd(1, sums + 16, 128);
    _tile_loadd(2, sums + 16 * 32, 128);
    if (kWide) _tile_loadd(3, sums + 16 * 32 + 16, 128);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; ++step, b += 2 * kTileElements) {
    _tile_loadd(6, b, 64);
    if (kWide) _tile_loadd(7, b + kTileElements, 64);
    _tile_loadd(4, upper + offsets[step], row);
    _tile_loadd(5, lower + offsets[step], row);
    _tile_dpbf16ps(0, 4, 6);
    if (kWide) _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    if (kWide) _tile_dpbf16ps(3, 5, 7);
    between();
  }
  _tile_stored(0, sums, 128);
  if (kWide) _tile_stored(1, sums + 16, 128);
  _tile_stored(2, sums + 16 * 32, 128);
  if (kWide) _tile_stored(3, sums + 16 * 32 + 16, 128);
}

template <class Planes>
class PixelProducts {
 public:
  // For up to `panels` panels of positions, weights of `row_panels` panels of `steps` steps.
  PixelProducts(const Correlation<BFloat16>& c, int64_t row_panels, int64_t steps, int64_t panels)
      : c_(c),
        map_(grid_map(c)),
        row_panels_(row_panels),
        steps_(steps),
        block_steps_(ceil_div(steps, ceil_div(steps, kMaxSteps))),
        group_(std::clamp<int64_t>(kMaxSteps / steps, 1, row_panels)),
        offsets_(panels * kGridStep),
        sums_((steps > kMaxSteps ? kBlockPanels : 1) * kTileSums),
        out_(c.epilogue, c.channels) {}

  // Where the positions of a grid like this lie in the result.
  void set_grid(const SplitGrid& grid) {
    grid_panels_ = grid.panels();
    const int64_t pitch = grid.pitch();
    for (int64_t p = 0, y = 0, x = 0; p < grid.span; ++p) {
      offsets_[p] = x < map_.cols ? y * map_.row_stride + x * map_.col_stride : -1;
      if (++x == pitch) x = 0, ++y;
    }
  }

  // Images [0, units) of `planes`; unit u's first position lies at result(u).
  template <class Result>
  void run(const Planes& planes, const uint16_t* weight, int64_t units, const Result& result) {
    const int64_t panels = units * grid_panels_;
    for (int64_t j = 0; j < panels; j += kBlockPanels) {
      for (int64_t i = 0; i < row_panels_; i += group_) {
        const int64_t j_end = std::min(panels, j + kBlockPanels);
        const int64_t i_end = std::min(row_panels_, i + group_);
        for (int64_t step = 0; step < steps_; step += block_steps_) {
          for (int64_t q = j; q < j_end; ++q) {
            for (int64_t k = i; k < i_end; ++k) product(planes, weight, k, q, step, result);
          }
        }
      }
    }
    out_.store(32);
    out_.take(nullptr);
  }

 private:
  // A panel of weights, or of a block of its depth, stays in a 48 KiB L1; several where they fit.
  static constexpr int64_t kMaxSteps = 18;
  // So many panels of positions meet all weights before the next do: their pixels are finished
  // while the lines that they lie in are still near.
  static constexpr int64_t kBlockPanels = 4;
  static constexpr int64_t kTileSums = 32 * 32;

  template <class Result>
  void product(const Planes& planes, const uint16_t* weight, int64_t i, int64_t j, int64_t step,
               const Result& result) {
    const int64_t count = std::min(block_steps_, steps_ - step), channel = i * 32;
    const int64_t unit = j / grid_panels_, p = j % grid_panels_ * kGridStep;
    const PixelTiles a = planes.tiles(unit, p);
    const uint16_t* b = weight + (i * steps_ + step) * 2 * kTileElements;
    // Free again: the tile before has left it by the time this one is stored.
    float* sums = sums_.get() + (steps_ > kMaxSteps ? j % kBlockPanels : 0) * kTileSums;
    const int rows = static_cast<int>(ceil_div(32, count));
    const bool last = step + count == steps_;
    out_.expect(result(unit), channel, &offsets_[p], last ? a.count : 0);
    const auto between = [&] { out_.store(rows); };
    if (c_.channels - channel > 16) {
      multiply_pixels<true>(count, a, a.offsets + step, b, sums, step > 0, between);
    } else {
      multiply_pixels<false>(count, a, a.offsets + step, b, sums, step > 0, between);
    }
    out_.take(sums);
  }

  const AmxEngine<1> configured_;
  const Correlation<BFloat16>& c_;
  const PositionMap map_;
  const int64_t row_panels_, steps_, block_steps_, group_;
  int64_t grid_panels_ = 0;
  Scratch<int64_t> offsets_;
  Scratch<float> sums_;
  PixelSums out_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
