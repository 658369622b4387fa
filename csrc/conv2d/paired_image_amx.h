// A planar bfloat16 image as the AMX unit multiplies it: a plane for each pair of channels,
// numbered like the grid of split_image_amx.h. Sixteen positions of 32 channels are then a tile as
// they lie, for every tap, and nothing is packed between the products.
#pragma once

#include "conv2d/tile_products_amx.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Whole steps of channels, taps whose positions follow each other, and enough of these to make up
// for the new order of a planar weight.
inline bool suits_pairs(const Correlation<BFloat16>& c) {
  const Images<BFloat16>& images = c.images;
  return images.channels % 32 == 0 && images.x.stride == 1 && images.y.stride == 1 &&
         c.batch * images.positions_per_image() >= 1024;
}

// Pairs in a plane: the rows of a tile, planes apart, each begin in another cache set.
inline int64_t paired_plane(const SplitGrid& grid) {
  return ceil_div(grid.y.length * grid.pitch(), kGridStep) * kGridStep + kGridStep / 2;
}

// A weight's depth in the order (ky, kx, channel), and where each 32 of it meet the image.
inline void step_offsets(const SplitGrid& grid, const Axis& y, const Axis& x, int64_t channels,
                         int64_t* offsets) {
  for (int64_t ky = 0; ky < y.taps; ++ky) {
    for (int64_t kx = 0; kx < x.taps; ++kx) {
      for (int64_t c = 0; c < channels; c += 32) {
        *offsets++ = c * paired_plane(grid) + 2 * grid.tap_offset(0, ky, kx);
      }
    }
  }
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

  // Element i of a, element i of b, the next of a, … from the `begin`-th on.
  static __m512i interleaving(int begin) {
    alignas(64) uint16_t order[32];
    for (int i = 0; i < 32; ++i) order[i] = static_cast<uint16_t>(begin + i / 2 + i % 2 * 32);
    return _mm512_load_si512(order);
  }

  const Images<BFloat16> images_;
  const SplitGrid grid_;
  const int64_t plane_, begin_, length_;
};

// The images of a thread's tasks, as GridCorrelation (correlate_amx.h) reads them.
template <bool kMasked>
class PairedPlanes {
 public:
  using Engine = AmxEngine<1>;
  using Products = TileProducts<PairedPlanes>;
  using Sums = PlaneSums<true>;
  static int64_t steps(const Images<BFloat16>& images) {
    return ceil_div(images.taps(), Engine::kDepthStep);
  }
  static constexpr bool kPacks = false, kPixels = false;
  // Of an image; the last panel of the last tap reads past its plane.
  static int64_t elements(const SplitGrid& grid, int64_t channels) {
    return channels * paired_plane(grid) + 4 * kGridStep;
  }

  PairedPlanes(const Correlation<BFloat16>& c, const SplitGrid& grid, int64_t units)
      : c_(c), offsets_(c.images.taps() / 32), pairs_(units * elements(grid, c.images.channels)) {}

  // Its depth in the order of the steps.
  static bool pack_weight(Engine& engine, const Correlation<BFloat16>& c, int64_t channel,
                          uint16_t* out) {
    const int64_t channels = c.images.channels, taps = c.images.taps(), window = taps / channels;
    const int64_t rows = std::min<int64_t>(32, c.channels - channel);
    const BFloat16* weight = c.weight + channel * taps;
    if (window == 1) {
      return engine.pack_a(StridedOperand<BFloat16>{weight, rows, taps, 1}, 0, 0, taps, out);
    }
    Scratch<BFloat16> ordered(rows * taps);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < window; ++k) {
        for (int64_t i = 0; i < channels; ++i) {
          ordered[r * taps + k * channels + i] = weight[r * taps + i * window + k];
        }
      }
    }
    return engine.pack_a(StridedOperand<BFloat16>{ordered.get(), rows, taps, 1}, 0, 0, taps, out);
  }

  void set_grid(const SplitGrid& grid) {
    plane_ = paired_plane(grid);
    elements_ = elements(grid, c_.images.channels);
    step_offsets(grid, c_.images.y, c_.images.x, c_.images.channels, offsets_.get());
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
