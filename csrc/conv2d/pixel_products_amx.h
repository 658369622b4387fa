// Products of an image of pixels (pixel_image_amx.h) with packed weights: the rows of a tile are
// positions, its columns output channels.
//
// While the unit works on one tile of 32×32 sums, the vector units bring the one before it to its
// place, some rows after each step: done in one piece they would wait for each other.
#pragma once

#include "conv2d/grid_sink_amx.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// 32 positions of an image, `row` elements apart: step s is 32 numbers of each, offsets[s] on.
struct PixelTiles {
  const uint16_t* image;
  const int64_t* offsets;
  int64_t row;
};

// 32×32 finished sums on their way to the result.
class PixelSums {
 public:
  PixelSums(const Epilogue<BFloat16>& epilogue, int64_t channels)
      : bias_(ceil_div(channels, 32) * 32),
        least_(Vec<float>::set1(epilogue.relu ? 0.0f : -__builtin_inff())) {
    for (int64_t c = 0; c < ceil_div(channels, 32) * 32; ++c) {
      const bool some = epilogue.bias != nullptr && c < channels;
      bias_[c] = some ? static_cast<float>(epilogue.bias[c]) : 0.0f;
    }
  }

  // `count` positions of up to 32 channels from `channel` on, position r at out + offsets[r], or
  // nowhere when that is negative.
  void begin(const float* sums, const int64_t* offsets, int count, BFloat16* out, int64_t channel,
             int64_t channels) {
    sums_ = sums;
    offsets_ = offsets;
    count_ = count;
    next_ = 0;
    out_ = out + channel;
    channel_ = channel;
    lanes_ = channels >= 32 ? ~__mmask32{0} : (__mmask32{1} << channels) - 1;
  }

  void store(int rows) {
    using V = Vec<float>;
    const int end = std::min(count_, next_ + rows);
    const V low_bias = V::load(&bias_[channel_]), high_bias = V::load(&bias_[channel_ + 16]);
    for (int r = next_; r < end; ++r) {
      // max returns its second operand for NaN, which keeps NaN as ReLU does.
      const V low = V::max(least_, V::load(sums_ + r * 32) + low_bias);
      const V high = V::max(least_, V::load(sums_ + r * 32 + 16) + high_bias);
      const __m512i words = (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v);
      const int64_t offset = offsets_[r];
      if (offset >= 0) _mm512_mask_storeu_epi16(out_ + offset, lanes_, words);
    }
    next_ = end;
  }
  void finish() { store(32); }

 private:
  Scratch<float> bias_;
  const Vec<float> least_;
  const float* sums_ = nullptr;
  const int64_t* offsets_ = nullptr;
  int count_ = 0, next_ = 0;
  BFloat16* out_ = nullptr;
  int64_t channel_ = 0;
  __mmask32 lanes_ = 0;
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
        sums_((steps > kMaxSteps ? panels : 1) * kTileSums),
        out_(c.epilogue, c.channels) {}

  // Where the positions of a grid like this lie in the result.
  void set_grid(const SplitGrid& grid) {
    grid_panels_ = grid.panels();
    span_ = grid.span;
    const int64_t pitch = grid.pitch();
    for (int64_t p = 0, y = 0, x = 0; p < span_; ++p) {
      offsets_[p] = x < map_.cols ? y * map_.row_stride + x * map_.col_stride : -1;
      if (++x == pitch) x = 0, ++y;
    }
  }

  // Images [0, units) of `planes`; unit u's first position lies at result(u).
  template <class Result>
  void run(const Planes& planes, const uint16_t* weight, int64_t units, const Result& result) {
    for (int64_t i = 0; i < row_panels_; i += group_) {
      const int64_t end = std::min(row_panels_, i + group_);
      for (int64_t step = 0; step < steps_; step += block_steps_) {
        for (int64_t j = 0; j < units * grid_panels_; ++j) {
          for (int64_t k = i; k < end; ++k) product(planes, weight, k, j, step, result);
        }
      }
    }
    out_.finish();
  }

 private:
  // A panel of weights, or of a block of its depth, stays in a 48 KiB L1; several where they fit.
  static constexpr int64_t kMaxSteps = 18;
  static constexpr int64_t kTileSums = 32 * 32;

  template <class Result>
  void product(const Planes& planes, const uint16_t* weight, int64_t i, int64_t j, int64_t step,
               const Result& result) {
    const int64_t count = std::min(block_steps_, steps_ - step), channel = i * 32;
    const int64_t unit = j / grid_panels_, p = j % grid_panels_ * kGridStep;
    const PixelTiles a = planes.tiles(unit, p);
    const uint16_t* b = weight + (i * steps_ + step) * 2 * kTileElements;
    // Free again: the tile before has left it by the time this one is stored.
    float* sums = sums_.get() + (steps_ > kMaxSteps ? j : 0) * kTileSums;
    const int rows = static_cast<int>(ceil_div(32, count));
    const auto between = [&] { out_.store(rows); };
    if (c_.channels - channel > 16) {
      multiply_pixels<true>(count, a, a.offsets + step, b, sums, step > 0, between);
    } else {
      multiply_pixels<false>(count, a, a.offsets + step, b, sums, step > 0, between);
    }
    if (step + count < steps_) return;
    out_.begin(sums, &offsets_[p], static_cast<int>(std::min(kGridStep, span_ - p)), result(unit),
               channel, c_.channels - channel);
  }

  const AmxEngine<1> configured_;
  const Correlation<BFloat16>& c_;
  const PositionMap map_;
  const int64_t row_panels_, steps_, block_steps_, group_;
  int64_t grid_panels_ = 0, span_ = 0;
  Scratch<int64_t> offsets_;
  Scratch<float> sums_;
  PixelSums out_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
