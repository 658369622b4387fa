// Products of packed weights with images that lie as tiles, for bfloat16 results. Where Planes keep
// pixels, the rows of a tile of sums are positions and its columns output channels; where they keep
// planes, the other way round.
#pragma once

#include "conv2d/tile_sums_bf16.h"
#include "conv2d/weights_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Where a step of the depth lies in an image, and how many pairs it has there.
struct ImageStep {
  int64_t offset;
  int pairs;
};

// A panel of `count` positions of an image: two tiles, `half` apart.
struct ImageTiles {
  const uint16_t* image;
  const ImageStep* steps;
  int64_t halves, rows;
  int count;

  const uint16_t* at(int64_t step) const { return image + steps[step].offset; }
  int pairs(int64_t step) const { return steps[step].pairs; }
  int64_t half() const { return halves; }
  static constexpr int64_t part() { return 0; }
  int64_t row() const { return rows; }
  static constexpr int64_t pair() { return 2; }
};

// The same of positions that are listed, none of them beyond the ends of rows: where tiles are rows
// of vectors, what is not wanted need not be computed.
struct ListedTiles {
  const uint16_t* image;
  const ImageStep* steps;
  const int64_t* listed_rows;
  int count;

  const uint16_t* at(int64_t step) const { return image + steps[step].offset; }
  int pairs(int64_t step) const { return steps[step].pairs; }
  static constexpr int64_t pair() { return 2; }
};

// Up to 32 columns of rows as they lie, `plane` apart, `numbers` of them from the first step on;
// what lies `ahead` of each is asked for.
struct PlaneTiles {
  const uint16_t* image;
  int64_t plane, numbers;
  __mmask32 lanes;  // of the columns that there are
  int64_t ahead;

  int pairs(int64_t step) const {
    return static_cast<int>(std::min<int64_t>(kTilePairs, numbers / 2 - step * kTilePairs));
  }

  // Two rows are paired on the way, their columns in the order of the 128-bit lanes' halves.
  class Columns {
   public:
    Columns(const PlaneTiles& tiles, int64_t step)
        : at_(tiles.image + step * 32 * tiles.plane),
          plane_(tiles.plane),
          ahead_(tiles.ahead),
          lanes_(tiles.lanes) {}

    void take(__m512bh (&columns)[2]) {
      const uint16_t* const below = at_ + plane_;
      prefetch_to_read(at_ + ahead_);
      prefetch_to_read(below + ahead_);
      const __m512i even = _mm512_maskz_loadu_epi16(lanes_, at_);
      const __m512i odd = _mm512_maskz_loadu_epi16(lanes_, below);
      columns[0] = (__m512bh)_mm512_unpacklo_epi16(even, odd);
      columns[1] = (__m512bh)_mm512_unpackhi_epi16(even, odd);
      at_ = below + plane_;
    }

   private:
    const uint16_t* at_;
    const int64_t plane_, ahead_;
    const __mmask32 lanes_;
  };
};

// A 1×1 kernel's, in rows of 32 positions, the last one maybe of fewer: x.size is how many there
// are, of all images of pixels, of each of planes.
inline Correlation<BFloat16> in_panels(Correlation<BFloat16> c) {
  if (c.channels_last) {
    c.images.x.positions *= c.batch;
    c.batch = 1;
  }
  const int64_t count = c.images.positions_per_image(), rows = ceil_div(count, kGridStep);
  const int64_t position = c.map.col_stride;
  c.images.x.size = count;
  c.images.x.positions = kGridStep;
  c.images.y.size = 1;
  c.images.y.positions = rows;
  c.map = {kGridStep, rows, c.map.image_stride, kGridStep * position, position};
  return c;
}

template <class Planes>
class TileProducts {
 public:
  // For up to `panels` panels of positions, weights of `row_panels` panels of `steps` steps.
  TileProducts(const Correlation<BFloat16>& c, int64_t row_panels, int64_t steps, int64_t panels)
      : channels_(c.channels),
        row_panels_(row_panels),
        steps_(steps),
        block_steps_(ceil_div(steps, ceil_div(steps, kMaxSteps))),
        group_(
            std::clamp<int64_t>(Planes::kPacks ? kPackedFor : kGroupSteps / steps, 1, row_panels)),
        panel_(Planes::kPacks ? block_steps_ * 2 * kTileElements : 0),
        sums_((steps > kMaxSteps ? kBlockPanels * group_ : 1) * kTileSums),
        map_(grid_map(c)),
        listed_rows_(Planes::kListed ? panels * kGridStep : 0),
        out_(c, panels) {}

  void set_grid(const PaddedGrid& grid) {
    lines_ = grid.y.axis.positions;
    grid_panels_ = grid.panels();
    listed_units_ = 0;
    if constexpr (!Planes::kListed) place_grid(grid);
  }

  // Images [0, units) of `planes`; unit u's first position lies at result(u).
  template <class Result>
  void run(const Planes& planes, const uint16_t* weight, int64_t units, const Result& result) {
    int64_t panels = units * grid_panels_;
    if constexpr (Planes::kListed) {
      // Those of one image stay as they are until its grid changes.
      if (units > 1 || listed_units_ != 1) list_positions(planes, units, result);
      listed_units_ = units;
      panels = grid_panels_ = ceil_div(positions_, kGridStep);
    }
    for (int64_t j = 0; j < panels; j += kBlockPanels) {
      for (int64_t i = 0; i < row_panels_; i += group_) {
        for (int64_t step = 0; step < steps_; step += block_steps_) {
          for (int64_t q = j; q < std::min(panels, j + kBlockPanels); ++q) {
            products(planes, weight, i, q, step, result(q / grid_panels_));
          }
        }
      }
    }
    out_.store(32);
    out_.take(nullptr);
  }

 private:
  // A panel of weights, or of a block of its depth, stays in a 48 KiB L1; several where they leave
  // more than half of it to positions, sums and results (counted; see docs/performance.md).
  static constexpr int64_t kMaxSteps = 18, kGroupSteps = 10;
  // Of weights that meet a panel of positions once it is packed.
  static constexpr int64_t kPackedFor = 8;
  // So many panels of positions meet all weights before the next do: their pixels are finished
  // while the lines that they lie in are still near.
  static constexpr int64_t kBlockPanels = 8;
  static constexpr int64_t kTileSums = 32 * 32;

  // A group of panels of the weights from i on times panel j, a block of the depth from `step` on.
  void products(const Planes& planes, const uint16_t* weight, int64_t i, int64_t j, int64_t step,
                BFloat16* out) {
    const int64_t count = std::min(block_steps_, steps_ - step), p = j % grid_panels_ * kGridStep;
    const auto image = tiles(planes, j, p, step, count);
    if constexpr (requires { planes.ask_next(image, count); }) {
      constexpr int64_t kShallow = 2;  // else a step's products ask for the next one's lines
      if (i == 0 && steps_ <= kShallow) planes.ask_next(image, count);
    }
    const bool last = step + count == steps_;
    for (int64_t k = i; k < std::min(row_panels_, i + group_); ++k) {
      const PackedTiles<1> panel{weight + (k * steps_ + step) * 2 * kTileElements};
      // Free again: the tile before has left it by the time this one is stored.
      float* sums = sums_.get() + (j % kBlockPanels * group_ + k - i) % sum_tiles() * kTileSums;
      out_.expect(out, k * 32, p, last ? positions(image) : 0);
      const TileSums to{sums, 32, kTileRows, kTileRows * 32};
      const int channels = static_cast<int>(std::min<int64_t>(32, channels_ - k * 32));
      const auto multiply = [&]<bool kBoth>(std::bool_constant<kBoth>) {
        if constexpr (Planes::kPixels) {
          multiply_one<true, kBoth>(count, image.count, image, panel, to, step > 0, last);
        } else {
          multiply_one<kBoth, true>(count, channels, panel, image, to, step > 0, last);
        }
      };
      channels > 16 ? multiply(std::true_type{}) : multiply(std::false_type{});
    }
  }

  // A tile of sums, on its way to the result if it is the `last` block of the depth: from registers
  // where these have it, else while the next one is made.
  template <bool kTall, bool kWide, class A, class B>
  void multiply_one(int64_t steps, int rows, const A& a, const B& b, const TileSums& sums, bool add,
                    bool last) {
    if constexpr (!kMatrixUnit && Planes::Sums::kByRows) {
      const auto start = [&](int row, auto& begun) __attribute__((always_inline)) {
        add ? sums.load(row, begun) : out_.start(row, begun);
      };
      const auto put = [&](int row, const auto& some) __attribute__((always_inline)) {
        last ? out_.put(row, some) : sums.store(row, some);
      };
      out_.ask_next();
      multiply_pairs<kTall, kWide>(steps, rows, a, b, start, put);
      return out_.expect_none();
    }
    const int stored = static_cast<int>(ceil_div(32, steps));
    multiply_tiles<1, kTall, kWide>(steps, rows, a, b, sums, add, [&] { out_.store(stored); });
    out_.take(sums.data);
  }

  // The positions of a grid, those at the rows' ends included.
  void place_grid(const PaddedGrid& grid) {
    const int64_t pitch = grid.pitch();
    for (int64_t p = 0, y = 0, x = 0; p < grid.span; ++p) {
      out_.place(p, x < map_.cols ? y * map_.row_stride + x * map_.col_stride : -1);
      if (++x == pitch) x = 0, ++y;
    }
    out_.placed(grid.span);
  }

  // The positions of all units, one after the other, in `planes` and in the result.
  template <class Result>
  void list_positions(const Planes& planes, int64_t units, const Result& result) {
    positions_ = 0;
    for (int64_t unit = 0; unit < units; ++unit) {
      for (int64_t y = 0; y < lines_; ++y) {
        const int64_t line = result(unit) - result(0) + y * map_.row_stride;
        for (int64_t x = 0; x < map_.cols; ++x, ++positions_) {
          listed_rows_[positions_] = planes.position(unit, y, x);
          out_.place(positions_, line + x * map_.col_stride);
        }
      }
    }
    out_.placed(positions_);
    const int64_t all = ceil_div(positions_, kGridStep) * kGridStep;  // a tile reads so many
    std::fill(&listed_rows_[positions_], listed_rows_.get() + all, listed_rows_[positions_ - 1]);
  }

  auto tiles(const Planes& planes, int64_t j, int64_t p, int64_t step, int64_t count) const {
    if constexpr (Planes::kListed) {
      const int64_t rest = std::min(kGridStep, positions_ - p);
      return planes.listed_tiles(&listed_rows_[p], static_cast<int>(rest), step);
    } else {
      return planes.tiles(j / grid_panels_, p, step, count, panel_.get());
    }
  }

  static int positions(const ImageTiles& tiles) { return tiles.count; }
  static int positions(const ListedTiles& tiles) { return tiles.count; }
  static int positions(const PlaneTiles& tiles) { return __builtin_popcount(tiles.lanes); }
  template <class Tiles>
  static int positions(const Tiles&) {
    return kGridStep;
  }
  int64_t sum_tiles() const { return steps_ > kMaxSteps ? kBlockPanels * group_ : 1; }

  const TileEngine<1> configured_;
  const int64_t channels_, row_panels_, steps_, block_steps_, group_;
  int64_t grid_panels_ = 0, lines_ = 0, positions_ = 0, listed_units_ = 0;
  Scratch<uint16_t> panel_;
  Scratch<float> sums_;
  const PositionMap map_;
  Scratch<int64_t> listed_rows_;
  typename Planes::Sums out_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
