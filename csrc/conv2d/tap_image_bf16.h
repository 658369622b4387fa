// Planar bfloat16 images of few channels, whose taps are the depth of the product: two taps side by
// side are a pair as they lie in a row, for positions two columns apart. Those are neighbours at
// stride 2; at stride 1 a vector of even positions and one of odd ones make a panel. So rows with
// zeros around are all the copy there is, where a matrix unit wants tiles (split_planes_bf16.h).
#pragma once

#include "conv2d/tile_products_bf16.h"
#include "conv2d/weight_tiles_bf16.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

template <bool kMasked>
bool suits_taps(const Correlation<BFloat16>& c) {
  const Axis& x = c.images.x;
  return !kMasked && !c.channels_last && c.images.channels < 16 && x.taps > 1 && x.dilation == 1 &&
         x.stride <= 2;
}

// The depth: first the pairs of the kernel's rows, then what odd rows leave, two rows' at a time,
// the last one's maybe alone. Both begin a step.
class TapPairs {
 public:
  explicit TapPairs(const Images<BFloat16>& images)
      : rows_(images.channels * images.y.taps), length_(images.x.taps) {}

  int64_t steps() const { return whole_steps() + ceil_div(split(), kTilePairs); }
  int64_t whole_steps() const { return ceil_div(whole(), kTilePairs); }
  // Of a step.
  int pairs(int64_t step) const {
    const bool is_whole = step < whole_steps();
    const int64_t left =
        is_whole ? whole() - step * kTilePairs : split() - (step - whole_steps()) * kTilePairs;
    return static_cast<int>(std::min<int64_t>(kTilePairs, left));
  }

  // f(pair, its first tap, its second tap or -1), a pair's number being 16 times its step's and
  // more.
  template <class F>
  void for_pairs(const F& f) const {
    const int64_t half = length_ / 2;
    for (int64_t i = 0; i < whole(); ++i) {
      const int64_t tap = i / half * length_ + i % half * 2;
      f(i, tap, tap + 1);
    }
    for (int64_t i = 0; i < split(); ++i) {
      const int64_t tap = (2 * i + 1) * length_ - 1;
      f(whole_steps() * kTilePairs + i, tap, 2 * i + 1 < rows_ ? tap + length_ : -1);
    }
  }

 private:
  int64_t whole() const { return rows_ * (length_ / 2); }
  int64_t split() const { return length_ % 2 * ceil_div(rows_, 2); }

  int64_t rows_, length_;
};

// Tiles of A with the weights of those pairs.
class TapWeight {
 public:
  explicit TapWeight(const Correlation<BFloat16>& c)
      : matrix_(c.weights->matrix()), pairs_(c.images) {}

  bool pack(TileEngine<1>&, int64_t channel, uint16_t* out) const {
    std::memset(out, 0, sizeof(uint16_t) * pairs_.steps() * 2 * kTileElements);
    const int64_t some = std::min<int64_t>(32, matrix_.extent - channel);
    pairs_.for_pairs([&](int64_t pair, int64_t first, int64_t second) {
      uint16_t* words = out + pair / kTilePairs * 2 * kTileElements + pair % kTilePairs * 2;
      for (int64_t i = 0; i < some; ++i, words += 32) {
        words[0] = bits(channel + i, first);
        if (second >= 0) words[1] = bits(channel + i, second);
      }
    });
    return true;
  }

 private:
  uint16_t bits(int64_t channel, int64_t tap) const {
    return matrix_.data[channel * matrix_.i_stride + tap * matrix_.p_stride].bits;
  }

  const StridedOperand<BFloat16> matrix_;
  const TapPairs pairs_;
};

// Where the taps of a step's pairs lie: those of split ones apart.
struct TapStep {
  struct Place {
    int64_t first, second;
    int32_t has_second;  // all bits, or none
  };
  int pairs;
  bool split;
  Place places[kTilePairs];
};

// A panel of 32 positions, the two vectors of a pair `kBeside` words apart.
template <int64_t kBeside>
struct TapTiles {
  const uint16_t* image;
  const TapStep* steps;

  int pairs(int64_t step) const { return steps[step].pairs; }

  // The pairs of a step, one after the other.
  class Columns {
   public:
    Columns(const TapTiles& tiles, int64_t step)
        : image_(tiles.image), place_(tiles.steps[step].places), split_(tiles.steps[step].split) {}

    void take(__m512bh (&columns)[2]) {
      const TapStep::Place& at = *place_++;
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const __m512i first = _mm512_loadu_si512(image_ + at.first + v * kBeside);
        columns[v] = (__m512bh)(split_ ? with_second(first, at, v) : first);
      }
    }

   private:
    __m512i with_second(__m512i first, const TapStep::Place& at, int v) const {
      const __m512i second = _mm512_loadu_si512(image_ + at.second + v * kBeside);
      const __m512i alone = _mm512_and_si512(first, _mm512_set1_epi32(0xffff));
      const __m512i above = _mm512_slli_epi32(second, 16);
      return _mm512_or_si512(alone, _mm512_and_si512(above, _mm512_set1_epi32(at.has_second)));
    }

    const uint16_t* const image_;
    const TapStep::Place* place_;
    const bool split_;
  };
};

// As GridCorrelation (correlate_bf16.h) reads them: rows of the phases of y, and columns as they
// are.
template <int64_t kStride>
class TapPlanes {
  using Tiles = TapTiles<kStride == 1 ? 1 : kGridStep>;

 public:
  using Engine = TileEngine<1>;
  using Products = TileProducts<TapPlanes>;
  using Weight = TapWeight;
  using Sums = PlaneSums<kStride == 1 ? ColumnOrder::kEvenAndOdd : ColumnOrder::kKept>;
  static constexpr bool kPacks = false, kPixels = false, kListed = false;

  static int64_t steps(const Images<BFloat16>& images) { return TapPairs(images).steps(); }

  // The last panel of the last tap reads past its plane, for positions that nobody wants.
  static int64_t elements(const PaddedGrid& grid, int64_t channels) {
    return channels * plane(grid) + kSlack;
  }

  TapPlanes(const Correlation<BFloat16>& c, const PaddedGrid& grid, int64_t units)
      : images_(c.images),
        depth_(c.images),
        steps_(depth_.steps()),
        rows_(units * elements(grid, c.images.channels)) {}

  void set_grid(const PaddedGrid& grid) {
    line_ = grid.pitch() * kStride;
    plane_ = plane(grid);
    const int64_t length = images_.x.taps, window = images_.y.taps * length;
    const auto place = [&](int64_t tap) {
      const int64_t ky = tap % window / length;
      const int64_t row = grid.y.phase(ky) * grid.y.length + grid.y.shift(ky);
      return tap / window * plane_ + row * line_ + tap % length;
    };
    depth_.for_pairs([&](int64_t pair, int64_t first, int64_t second) {
      const bool two = second >= 0;
      steps_[pair / kTilePairs].places[pair % kTilePairs] = {
          place(first), place(two ? second : first), two ? -1 : 0};
    });
    for (int64_t step = 0; step < depth_.steps(); ++step) {
      steps_[step].pairs = depth_.pairs(step);
      steps_[step].split = step >= depth_.whole_steps();
    }
  }

  bool write(const Images<BFloat16>& band, int64_t n, int64_t unit) {
    const int64_t size = band.y.size * band.x.size;
    uint16_t* to = image(unit);
    for (int64_t c = 0; c < band.channels; ++c, to += plane_) {
      const BFloat16* from = band.data + (n * band.total_channels + c) * size;
      write_padded_rows(band, line_, 1, to, [from](int64_t at, int64_t count, uint16_t* row) {
        std::memcpy(row, from + at, sizeof(uint16_t) * count);
      });
    }
    std::memset(to, 0, sizeof(uint16_t) * kSlack);
    return true;
  }

  Tiles tiles(int64_t unit, int64_t p, int64_t step, int64_t, uint16_t*) const {
    return {image(unit) + p * kStride, &steps_[step]};
  }

 private:
  static constexpr int64_t kSlack = 4 * kGridStep;

  static int64_t plane(const PaddedGrid& grid) {
    return grid.y.phases * grid.y.length * grid.pitch() * kStride;
  }
  uint16_t* image(int64_t unit) const {
    return rows_.get() + unit * (images_.channels * plane_ + kSlack);
  }

  const Images<BFloat16> images_;
  const TapPairs depth_;
  int64_t line_ = 0, plane_ = 0;
  Scratch<TapStep> steps_;
  Scratch<uint16_t> rows_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
