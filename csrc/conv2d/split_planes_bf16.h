// Images in planes of parts (split_image_bf16.h) as GridCorrelation (correlate_bf16.h) reads them.
#pragma once

#include "conv2d/plane_products_bf16.h"
#include "conv2d/tile_products_bf16.h"
#include "conv2d/weight_tiles_bf16.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Those of a thread's tasks, for any axes and channels.
template <int kParts, bool kMasked, class T>
class SplitPlanes {
 public:
  using Engine = TileEngine<kParts>;
  using Weight = PlaneWeight<Engine, T>;
  using Products = std::conditional_t<kUnsplit<kParts, T>, TileProducts<SplitPlanes>,
                                      PlaneProducts<SplitPlanes, T>>;
  using Sums = PlaneSums<ColumnOrder::kUnpacked>;
  static constexpr bool kPacks = true, kPixels = false,
                        kListed = false;  // a panel, its columns out of order
  // An eighth more than the engine's own, which a 3×3 kernel of 32 channels takes in one block.
  static constexpr int64_t kMaxSteps = Engine::kMaxDepth * 9 / 8 / Engine::kDepthStep;

  static int64_t steps(const Images<T>& images) {
    return ceil_div(images.taps(), Engine::kDepthStep);
  }
  static int64_t elements(const PaddedGrid& grid, int64_t channels) {
    return grid.part_elements(channels) * kParts;
  }

  // For bands on grids up to `grid`, `units` at a time.
  SplitPlanes(const Correlation<T>& c, const PaddedGrid& grid, int64_t units)
      : c_(c),
        taps_(c.images.taps()),
        offsets_(taps_),
        parts_(units * elements(grid, c.images.channels)) {}

  void set_grid(const PaddedGrid& grid) {
    part_ = grid.part_elements(c_.images.channels);
    tap_offsets(c_.images, grid, c_.channels_last, offsets_.get());
  }

  // Image n of `band` as the unit-th one; whether the parts hold its numbers.
  bool write(const Images<T>& band, int64_t n, int64_t unit) {
    const Magnitude magnitude =
        split_image<kParts, kMasked>(band, c_.channels_last, n, parts(unit));
    return kUnsplit<kParts, T> || magnitude.regular();
  }

  // The panel of 32 positions from p on: pairs of taps, as the unit wants them.
  PackedTiles<kParts> tiles(int64_t unit, int64_t p, int64_t step, int64_t count,
                            uint16_t* panel) const {
    alignas(64) static constexpr uint16_t kZeros[32] = {};
    const uint16_t* image = parts(unit) + p;
    for (int64_t t = step * 32; t < (step + count) * 32; t += 2) {
      const uint16_t* low = t < taps_ ? image + offsets_[t] : kZeros;
      const uint16_t* high = t + 1 < taps_ ? image + offsets_[t + 1] : kZeros;
      const int64_t low_part = t < taps_ ? part_ : 0;
      const int64_t high_part = t + 1 < taps_ ? part_ : 0;
      uint16_t* out = panel + (t / 32 - step) * Engine::kStepElements + t % 32 / 2 * 32;
      for (int part = 0; part < kParts; ++part, out += Engine::kPartElements) {
        const __m512i a = _mm512_loadu_si512(low + part * low_part);
        const __m512i b = _mm512_loadu_si512(high + part * high_part);
        _mm512_store_si512(out, _mm512_unpacklo_epi16(a, b));
        _mm512_store_si512(out + kTileElements, _mm512_unpackhi_epi16(a, b));
      }
    }
    return {panel};
  }

 private:
  uint16_t* parts(int64_t unit) const { return parts_.get() + unit * kParts * part_; }

  const Correlation<T>& c_;
  const int64_t taps_;
  int64_t part_ = 0;
  Scratch<int64_t> offsets_;
  Scratch<uint16_t> parts_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
