// Planar bfloat16 images of a 1×1 kernel as tiles multiply them: 32 positions of 32 channels are
// two tiles of B, pairs of channels side by side, and the sums of 32 output channels leave as parts
// of planes. Nothing is transposed on either way.
#pragma once

#include "conv2d/tile_products_bf16.h"
#include "conv2d/weight_tiles_bf16.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// One tap. More taps begin anywhere in a line, and loads that cross lines cost more than to gather
// pixels: 3×3 64 → 128 of 24×24, batch 64, takes 8.2 ms from pairs and 7.2 ms from pixels (one
// thread of Sapphire Rapids, November 2026).
inline bool suits_pairs(const Correlation<BFloat16>& c) {
  const Images<BFloat16> images = uncut(c).images;
  return !c.channels_last && images.channels >= 16 && images.is_identity();
}

// The images of a thread's tasks, as GridCorrelation (correlate_bf16.h) reads them, one after the
// other: all steps of a panel of positions, then the next panel's.
template <bool kMasked>
class PairedPlanes {
 public:
  using Engine = TileEngine<1>;
  using Products = TileProducts<PairedPlanes>;
  using Weight = PlaneWeight<Engine, BFloat16>;
  using Sums = PlaneSums<ColumnOrder::kKept>;
  static constexpr bool kPacks = false, kPixels = false, kListed = true;

  static int64_t steps(const Images<BFloat16>& images) { return ceil_div(images.channels, 32); }

  static int64_t elements(const PaddedGrid& grid, int64_t channels) {
    return grid.panels() * kGridStep * ceil_div(channels, 32) * 32;
  }

  PairedPlanes(const Correlation<BFloat16>& c, const PaddedGrid& grid, int64_t units)
      : channels_(c.images.channels),
        depth_(steps(c.images) * 32),
        first_(units),
        pairs_(units * elements(grid, channels_)) {}

  void set_grid(const PaddedGrid& grid) { columns_ = grid.pitch(), positions_ = grid.span; }

  bool write(const Images<BFloat16>& band, int64_t n, int64_t unit) {
    const int64_t plane = band.y.size * band.x.size;
    first_[unit] = n * band.total_channels * plane + band.y.origin * band.x.size;
    ahead_ = plane < kLargePlane ? 32 * plane : 4 * kGridStep;
    const int64_t begin = unit * positions_ / kGridStep * kGridStep;
    for (int64_t c = 0; c < channels_; c += 32) {
      uint16_t* tiles = pairs_.get() + begin * depth_ + c * kGridStep;
      for (int64_t p = begin; p < (unit + 1) * positions_; p += kGridStep) {
        const auto load = [&](int64_t i) {
          return c + i < channels_ ? words(band, (c + i) * plane, unit, p) : _mm512_setzero_si512();
        };
        pack_tile_columns<false>(load, tiles, tiles + kTileElements);
        tiles += depth_ * kGridStep;
      }
    }
    return true;
  }

  int64_t position(int64_t unit, int64_t y, int64_t x) const {
    return unit * positions_ + y * columns_ + x;
  }
  PackedTiles<1> listed_tiles(const int64_t* positions, int, int64_t step) const {
    return {pairs_.get() + *positions * depth_ + step * PackedTiles<1>::part()};
  }

 private:
  // The panel from p on of a channel whose planes are `channel` from the first ones: of this unit
  // and of those before that end in it.
  __m512i words(const Images<BFloat16>& band, int64_t channel, int64_t unit, int64_t p) const {
    __m512i all = _mm512_setzero_si512();
    for (;; --unit) {
      const int64_t i = p - unit * positions_, at = first_[unit] + channel + i;
      prefetch_to_read(band.data + at + ahead_);
      const __mmask32 lanes = first_words(positions_ - i) & ~first_words(-i);
      all = _mm512_or_si512(all, load_words<kMasked>(band, at, lanes));
      if (i >= 0) return all;
    }
  }

  // In a smaller one too few lines follow: the next step's channels are asked for meanwhile.
  static constexpr int64_t kLargePlane = 4096;

  const int64_t channels_, depth_;  // of whole steps
  int64_t columns_ = 0, positions_ = 0, ahead_ = 0;
  Scratch<int64_t> first_;  // of each unit's positions, its place in the first channel
  Scratch<uint16_t> pairs_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
