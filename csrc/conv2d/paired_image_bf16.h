// A planar bfloat16 image as tiles multiply it: a plane for each pair of channels,
// numbered like the grid of split_image_bf16.h. Sixteen positions of 32 channels are then a tile of
// B as they lie, and nothing is transposed on either way.
#pragma once

#include "conv2d/tile_products_bf16.h"
#include "conv2d/weight_tiles_bf16.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// One tap and whole steps of channels. More taps begin anywhere in a line, and loads that cross
// lines cost more than to gather pixels: 3×3 64 → 128 of 24×24, batch 64, takes 8.2 ms from pairs
// and 7.2 ms from pixels (one thread of Sapphire Rapids, November 2026).
inline bool suits_pairs(const Correlation<BFloat16>& c) {
  const Images<BFloat16>& images = c.images;
  return !c.channels_last && images.channels % 32 == 0 && images.taps() == images.channels &&
         images.x.stride == 1 && images.y.stride == 1;
}

// Pairs in a plane: the rows of a tile, planes apart, each begin in another cache set.
inline int64_t paired_plane(const PaddedGrid& grid) {
  return ceil_div(grid.y.length * grid.pitch(), kGridStep) * kGridStep + kGridStep / 2;
}

template <bool kMasked>
class PairedImage {
 public:
  explicit PairedImage(const Images<BFloat16>& images)
      : images_(images),
        grid_(images.y, images.x),
        plane_(paired_plane(grid_)),
        begin_(grid_.x.begin(0)),
        length_(grid_.x.end(0) - begin_) {}

  // Image n.
  void write(int64_t n, uint16_t* pairs) const {
    const Axis &y = images_.y, &x = images_.x;
    const int64_t at = n * images_.total_channels * y.size * x.size, pitch = grid_.pitch();
    for (int64_t c = 0; c < images_.channels; c += 32, pairs += 32 * plane_) {
      for (int64_t row = 0; row < grid_.y.length; ++row) {
        uint16_t* to = pairs + 2 * row * pitch;
        if (row < grid_.y.begin(0) || row >= grid_.y.end(0)) {
          clear(to, pitch);
          continue;
        }
        clear(to, begin_);
        const int64_t from = grid_.y.coordinate(0, row) * x.size + grid_.x.coordinate(0, begin_);
        write_planes(at + c * y.size * x.size + from, to + 2 * begin_);
        clear(to + 2 * (begin_ + length_), pitch - begin_ - length_);
      }
      const int64_t end = grid_.y.length * pitch;
      clear(pairs + 2 * end, plane_ - end);
    }
  }

 private:
  // `count` pairs of each of 16 planes.
  void clear(uint16_t* to, int64_t count) const {
    if (count == 0) return;
    for (int pair = 0; pair < 16; ++pair) std::memset(to + 2 * pair * plane_, 0, 4 * count);
  }

  // A row of 32 planar channels.
  void write_planes(int64_t from, uint16_t* to) const {
    const int64_t channel = images_.y.size * images_.x.size;
    const __m512i low = interleaving(0), high = interleaving(16);
    for (int pair = 0; pair < 16; ++pair, from += 2 * channel, to += 2 * plane_) {
      for (int64_t i = 0; i < length_; i += 32) {
        const int64_t n = length_ - i;
        const __m512i a = load_words<kMasked>(images_, from + i, first_words(n)),
                      b = load_words<kMasked>(images_, from + channel + i, first_words(n));
        const auto pairs = [&](int64_t done, const __m512i& order) {
          const __mmask32 lanes = first_words(2 * (n - done));
          const __m512i both = _mm512_permutex2var_epi16(a, order, b);
          _mm512_mask_storeu_epi16(to + 2 * (i + done), lanes, both);
        };
        pairs(0, low);
        if (n > 16) pairs(16, high);
      }
    }
  }

  const Images<BFloat16> images_;
  const PaddedGrid grid_;
  const int64_t plane_, begin_, length_;
};

// The images of a thread's tasks, as GridCorrelation (correlate_bf16.h) reads them.
template <bool kMasked>
class PairedPlanes {
 public:
  using Engine = TileEngine<1>;
  using Products = TileProducts<PairedPlanes>;
  using Weight = PlaneWeight<Engine, BFloat16>;
  using Sums = PlaneSums<true>;
  static constexpr bool kPacks = false, kPixels = false, kListed = false;

  static int64_t steps(const Images<BFloat16>& images) { return images.channels / 32; }

  // Of an image; the last panel of the last tap reads past its plane.
  static int64_t elements(const PaddedGrid& grid, int64_t channels) {
    return channels * paired_plane(grid) + 4 * kGridStep;
  }

  PairedPlanes(const Correlation<BFloat16>& c, const PaddedGrid& grid, int64_t units)
      : c_(c), offsets_(c.images.taps() / 32), pairs_(units * elements(grid, c.images.channels)) {}

  void set_grid(const PaddedGrid& grid) {
    plane_ = paired_plane(grid);
    elements_ = elements(grid, c_.images.channels);
    for (int64_t i = 0; i < c_.images.channels; i += 32) offsets_[i / 32] = i * plane_;
  }

  bool write(const Images<BFloat16>& band, int64_t n, int64_t unit) {
    PairedImage<kMasked>(band).write(n, pairs_.get() + unit * elements_);
    return true;
  }

  ImageTiles tiles(int64_t unit, int64_t p, int64_t step, int64_t, uint16_t*) const {
    return {pairs_.get() + unit * elements_ + 2 * p, &offsets_[step], kGridStep, 2 * plane_,
            kGridStep};
  }

 private:
  const Correlation<BFloat16>& c_;
  int64_t plane_ = 0, elements_ = 0;
  Scratch<int64_t> offsets_;
  Scratch<uint16_t> pairs_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
