// Planar bfloat16 images of a 1×1 kernel, read where they are: dot products of pairs take 32
// positions of two channels, which two shuffles bring side by side, so that no copy is made. A
// matrix unit wants the copy (paired_image_bf16.h).
#pragma once

#include "conv2d/tile_products_bf16.h"
#include "conv2d/weight_tiles_bf16.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Whether panels of positions fill the planes, and stay in L1 until all weights have met them: few
// enough, and in different sets, which planes a power of two apart would share.
template <bool kMasked>
bool suits_bare_planes(const Correlation<BFloat16>& c) {
  constexpr int64_t kWay = 4096, kWays = 8;  // of 12
  const int64_t most_channels = c.channels <= 64 ? 256 : 128;
  const Images<BFloat16>& images = c.images;
  const int64_t plane = images.positions_per_image();
  const int64_t apart = std::gcd(plane * int64_t{sizeof(BFloat16)}, kWay);
  const int64_t line = kGridStep * int64_t{sizeof(BFloat16)};
  return !kMasked && !c.channels_last && images.is_identity() && c.map.cols == plane &&
         images.channels % 2 == 0 && images.channels >= 16 && images.channels <= most_channels &&
         20 * ceil_div(plane, kGridStep) * kGridStep <= 21 * plane &&
         images.channels * std::max(apart, line) <= kWay * kWays;
}

// As GridCorrelation (correlate_bf16.h) reads them, in panels.
class BarePlanes {
 public:
  using Engine = TileEngine<1>;
  using Products = TileProducts<BarePlanes>;
  using Weight = PlaneWeight<Engine, BFloat16>;
  using Sums = PlaneSums<ColumnOrder::kUnpacked>;
  static constexpr bool kPacks = false, kPixels = false, kListed = false;

  static int64_t steps(const Images<BFloat16>& images) { return ceil_div(images.channels, 32); }
  static int64_t elements(const PaddedGrid& grid, int64_t channels) { return grid.span * channels; }

  BarePlanes(const Correlation<BFloat16>& c, const PaddedGrid&, int64_t units)
      : images_(c.images), first_(units) {}

  void set_grid(const PaddedGrid&) {}

  bool write(const Images<BFloat16>& band, int64_t n, int64_t unit) {
    first_[unit] = {n * images_.total_channels * images_.x.size, band.y.origin * kGridStep};
    return true;
  }

  PlaneTiles tiles(int64_t unit, int64_t p, int64_t step, int64_t, uint16_t*) const {
    const int64_t plane = images_.x.size, position = first_[unit].position + p;
    const auto* image = reinterpret_cast<const uint16_t*>(images_.data) + first_[unit].image;
    return {image + step * 32 * plane + position, plane, images_.channels - step * 32,
            first_words(plane - position), 2 * kGridStep};
  }

 private:
  struct First {
    int64_t image, position;
  };

  const Images<BFloat16> images_;
  Scratch<First> first_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
