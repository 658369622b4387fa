// A bfloat16 image of pixels (NHWC) as tiles multiply it: 16 positions of 32 channels are
// a tile of A, and its rows lie in memory as they are wanted, a pixel apart. The sums of 32
// positions and 32 channels then leave the unit as parts of pixels too: nothing is transposed on
// either way.
#pragma once

#include "conv2d/tile_products_bf16.h"
#include "conv2d/weight_tiles_bf16.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Largest magnitude met of bfloat16.
struct WordMagnitude {
  __m512i bits = _mm512_setzero_si512();

  void see(__m512i words) {
    bits = _mm512_max_epu16(bits, _mm512_and_si512(words, _mm512_set1_epi16(0x7fff)));
  }
  bool finite() const { return _mm512_cmpge_epu16_mask(bits, _mm512_set1_epi16(0x7f80)) == 0; }
};

// Steps that are mostly taps, or so few that their price is small beside that of packing columns.
// Planes must also make up for their way to pixels and back and the new order of their weights,
// unless a single tap is none of those that need no packing (paired_image_bf16.h).
inline bool suits_pixels(const Correlation<BFloat16>& c) {
  const int64_t taps = c.images.taps();
  const bool several = taps > c.images.channels || !uncut(c).images.is_identity();
  return taps >= 16 && PixelRuns(c.images).steps() * 32 <= 4 * taps &&
         (c.channels_last ||
          (c.images.channels >= 16 && several &&
           c.batch * c.images.positions_per_image() >= (kMatrixUnit ? 1024 : 32)));
}

// Pixels of 32 channels, of which `lanes` there are, to `to`, each `pixel` words from the one
// before. Dwords of pairs of channels, unpacked, of which each 128 bits hold four of eight pixels.
inline void store_pixels(Vec<float> (&pairs)[16], __mmask32 lanes, int64_t count, int64_t pixel,
                         uint16_t* to) {
  if (count <= 0) return;
  transpose(pairs);
  for (int r = 0; r < 16; ++r) {
    const int64_t p = r / 4 * 8 + r % 4;
    if (p >= count) break;
    _mm512_mask_storeu_epi16(to + p * pixel, lanes, _mm512_castps_si512(pairs[r].v));
  }
}

// `count` neighbours of planes as pixels, from the `at`-th number on: pairs of 32 planes' numbers
// are the dwords of pixels, of which 32 at a time are transposed. see() gets all words.
template <bool kMasked, class See>
void gather_pixels(const BFloat16* data, const BFloat16* mask, int64_t channels, int64_t plane,
                   int64_t at, int64_t count, uint16_t* to, const See& see) {
  for (int64_t c = 0; c < channels; c += 32, at += 32 * plane, to += 32) {
    const __mmask32 some = first_words(channels - c);
    for (int64_t i = 0; i < count; i += 32) {
      const __mmask32 lanes = first_words(count - i);
      Vec<float> low[16], high[16];  // dwords, which nobody computes with
      for (int64_t pair = 0; pair < 16; ++pair) {
        const int64_t even = at + 2 * pair * plane + i, left = channels - c - 2 * pair;
        prefetch_to_read(data + even + 32 * plane);  // of the next 32 planes
        prefetch_to_read(data + even + 33 * plane);
        const __m512i a = load_words<kMasked>(data, mask, even, left > 0 ? lanes : 0);
        const __m512i b = load_words<kMasked>(data, mask, even + plane, left > 1 ? lanes : 0);
        see(a), see(b);
        low[pair].v = _mm512_castsi512_ps(_mm512_unpacklo_epi16(a, b));
        high[pair].v = _mm512_castsi512_ps(_mm512_unpackhi_epi16(a, b));
      }
      store_pixels(low, some, count - i, channels, to + i * channels);
      store_pixels(high, some, count - i - 4, channels, to + (i + 4) * channels);
    }
  }
}

// Images written once to a grid with zeros around: rows of the phases of y, and columns as they
// are, since a tile's rows may be any distance apart.
// kPlanar: from and to planes.
template <bool kPlanar, bool kMasked>
class PixelPlanes {
 public:
  using Engine = TileEngine<1>;
  using Products = TileProducts<PixelPlanes>;
  using Weight = PixelWeight;
  using Sums = std::conditional_t<kPlanar, TransposedSums, PixelSums>;
  static constexpr bool kPacks = false, kPixels = true, kListed = !kMatrixUnit;

  static int64_t steps(const Images<BFloat16>& images) { return PixelRuns(images).steps(); }

  // The last panel of the last tap reads past the grid, for positions that nobody wants.
  static int64_t elements(const PaddedGrid& grid, int64_t channels) {
    const int64_t positions = grid.y.phases * grid.y.length * grid.pitch() + kGridStep;
    return positions * grid.x.axis.stride * channels + kSlack;
  }

  PixelPlanes(const Correlation<BFloat16>& c, const PaddedGrid& grid, int64_t units)
      : images_(c.images),
        runs_(c.images),
        position_(c.images.x.stride * c.images.channels),
        steps_(runs_.steps()),
        pixels_(units * elements(grid, c.images.channels)) {}

  void set_grid(const PaddedGrid& grid) {
    elements_ = elements(grid, images_.channels);
    line_ = grid.pitch() * position_;
    span_ = grid.span;
    const Axis& x = images_.x;
    const int64_t columns = runs_.count / images_.y.taps;
    ImageStep* step = steps_.get();
    for (int64_t ky = 0; ky < images_.y.taps; ++ky) {
      const int64_t row = grid.y.phase(ky) * grid.y.length + grid.y.shift(ky);
      for (int64_t kx = 0; kx < columns; ++kx) {
        for (int64_t i = 0; i < runs_.length; i += 32) {
          *step++ = {row * line_ + kx * x.dilation * images_.channels + i, runs_.pairs(i)};
        }
      }
    }
  }

  // Whether zeros may meet the numbers.
  bool write(const Images<BFloat16>& band, int64_t n, int64_t unit) {
    const int64_t image = n * band.total_channels * band.x.size * band.y.size;
    WordMagnitude magnitude;
    const auto copy = [&](int64_t at, int64_t count, uint16_t* to) {
      if constexpr (kPlanar) {
        gather_pixels<kMasked>(band.data, band.mask, band.channels, band.y.size * band.x.size,
                               image + at, count, to, [&](__m512i words) {
                                 if (!runs_.exact()) magnitude.see(words);
                               });
      } else {
        copy_pixels(band, image + at * band.total_channels, count, to, magnitude);
      }
    };
    uint16_t* to = pixels_.get() + unit * elements_;
    to = write_padded_rows(band, line_, band.channels, to, copy);
    std::memset(to, 0, sizeof(uint16_t) * kSlack);
    return magnitude.finite();
  }

  ImageTiles tiles(int64_t unit, int64_t p, int64_t step, int64_t, uint16_t*) const {
    return {pixels_.get() + unit * elements_ + p * position_, &steps_[step], 16 * position_,
            position_, static_cast<int>(std::min(kGridStep, span_ - p))};
  }
  // Of positions that a list has.
  ListedTiles listed_tiles(const int64_t* rows, int count, int64_t step) const {
    return {pixels_.get(), &steps_[step], rows, count};
  }
  int64_t position(int64_t unit, int64_t y, int64_t x) const {
    return unit * elements_ + y * line_ + x * position_;
  }

 private:
  static constexpr int64_t kSlack = 64;  // a step beyond the last position is zero

  void copy_pixels(const Images<BFloat16>& band, int64_t at, int64_t count, uint16_t* to,
                   WordMagnitude& magnitude) const {
    const bool dense = band.channels == band.total_channels;
    const int64_t run = dense ? count * band.channels : band.channels;
    for (int64_t p = 0; p < (dense ? 1 : count); ++p, at += band.total_channels, to += run) {
      if (!kMasked && runs_.exact()) {
        std::memcpy(to, band.data + at, sizeof(uint16_t) * run);
        continue;
      }
      for (int64_t i = 0; i < run; i += 32) {
        const __mmask32 lanes = first_words(run - i);
        prefetch_to_read(band.data + at + i + 2048);  // 4 KiB further on
        const __m512i words = load_words<kMasked>(band, at + i, lanes);
        if (!runs_.exact()) magnitude.see(words);
        _mm512_mask_storeu_epi16(to + i, lanes, words);
      }
    }
  }

  const Images<BFloat16> images_;
  const PixelRuns runs_;
  const int64_t position_;
  int64_t elements_ = 0, line_ = 0, span_ = 0;
  Scratch<ImageStep> steps_;
  Scratch<uint16_t> pixels_;
};

// Whether the image is read as it lies, positions of the result following those of the images.
template <bool kMasked>
bool suits_bare_pixels(const Correlation<BFloat16>& c) {
  const Images<BFloat16>& images = c.images;
  return c.channels_last && !kMasked && PixelRuns(images).exact() && images.is_identity() &&
         c.map.cols == c.batch * images.positions_per_image();
}

// The images of a 1×1 kernel, in panels, where they are.
class BarePixels {
 public:
  using Engine = TileEngine<1>;
  using Products = TileProducts<BarePixels>;
  using Weight = PixelWeight;
  using Sums = PixelSums;
  static constexpr bool kPacks = false, kPixels = true, kListed = false;

  static int64_t steps(const Images<BFloat16>& images) { return PixelRuns(images).steps(); }
  static int64_t elements(const PaddedGrid& grid, int64_t channels) { return grid.span * channels; }

  BarePixels(const Correlation<BFloat16>& c, const PaddedGrid&, int64_t units)
      : images_(c.images),
        steps_(steps(c.images)),
        first_(units),
        rest_(kGridStep * c.images.channels) {
    const PixelRuns runs(c.images);
    for (int64_t i = 0; i < runs.steps(); ++i) steps_[i] = {i * 32, runs.pairs(i * 32)};
  }

  void set_grid(const PaddedGrid&) {}

  bool write(const Images<BFloat16>& band, int64_t, int64_t unit) {
    first_[unit] = band.y.origin * kGridStep;
    // A tile reads 32 pixels, where fewer may be.
    const int64_t rest = images_.x.size % kGridStep, end = images_.x.size - rest;
    if (rest != 0 && first_[unit] + band.y.positions * kGridStep > end) {
      for (int64_t p = 0; p < rest; ++p) {
        std::memcpy(&rest_[p * images_.channels], images_.data + (end + p) * images_.total_channels,
                    sizeof(uint16_t) * images_.channels);
      }
    }
    return true;
  }

  ImageTiles tiles(int64_t unit, int64_t p, int64_t step, int64_t, uint16_t*) const {
    const int64_t at = first_[unit] + p, pixel = images_.total_channels;
    const int64_t count = std::min(kGridStep, images_.x.size - at);
    if (count < kGridStep) {
      return {rest_.get(), &steps_[step], 16 * images_.channels, images_.channels,
              static_cast<int>(count)};
    }
    return {reinterpret_cast<const uint16_t*>(images_.data) + at * pixel, &steps_[step], 16 * pixel,
            pixel, kGridStep};
  }

  // For the lines of `count` steps that the panel after these reads.
  void ask_next(const ImageTiles& tiles, int64_t count) const {
    const uint16_t* pixel = tiles.at(0) + kGridStep * tiles.rows;
    for (int64_t p = 0; p < kGridStep; ++p, pixel += tiles.rows) {
      for (int64_t i = 0; i < count; ++i) prefetch_to_read(pixel + i * 32);
    }
  }

 private:
  const Images<BFloat16> images_;
  Scratch<ImageStep> steps_;
  Scratch<int64_t> first_;
  Scratch<uint16_t> rest_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
