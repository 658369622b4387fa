// A bfloat16 image of pixels (NHWC) as the AMX unit multiplies it: 16 positions of 32 channels are
// a tile of A, and its rows lie in memory as they are wanted, a pixel apart. The sums of 32
// positions and 32 channels then leave the unit as parts of pixels too: nothing is transposed on
// either way.
#pragma once

#include "conv2d/pixel_products_amx.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

inline __mmask32 first_words(int64_t n) {
  return n >= 32 ? ~__mmask32{0} : (__mmask32{1} << std::max<int64_t>(n, 0)) - 1;
}

// The mask as where_positive reads it: a NaN lets the gradient pass.
template <bool kMasked>
__m512i load_words(const Images<BFloat16>& images, int64_t at, __mmask32 lanes) {
  const __m512i x = _mm512_maskz_loadu_epi16(lanes, images.data + at);
  if constexpr (!kMasked) return x;
  const __m512i y = _mm512_maskz_loadu_epi16(lanes, images.mask + at);
  const __mmask32 positive =
      _mm512_cmpgt_epi16_mask(y, _mm512_setzero_si512()) |
      _mm512_cmpgt_epu16_mask(y, _mm512_set1_epi16(static_cast<int16_t>(0xff80)));
  return _mm512_maskz_mov_epi16(positive, x);
}

// 32 output channels of a weight (channels, depth) as tiles of B.
inline void pack_weight_panel(const BFloat16* weight, int64_t channels, int64_t depth,
                              uint16_t* out) {
  for (int64_t p = 0; p < depth; p += 32) {
    for (int half = 0; half < 2; ++half, out += kTileElements) {
      Vec<float> block[16];  // dwords, which nobody computes with
      for (int r = 0; r < 16; ++r) {
        const int64_t o = half * 16 + r;
        const __mmask32 lanes = o < channels ? first_words(depth - p) : 0;
        block[r].v = _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(lanes, weight + o * depth + p));
      }
      transpose(block);
      for (int r = 0; r < 16; ++r) _mm512_store_ps(out + r * 32, block[r].v);
    }
  }
}

// Whole steps of channels.
inline bool suits_pixels(const Correlation<BFloat16>& c) {
  return c.channels_last && c.images.channels % 32 == 0;
}

// Images of whole steps of channels, written once to a grid with zeros around.
template <bool kMasked>
class PixelPlanes {
 public:
  using Engine = AmxEngine<1>;
  using Products = PixelProducts<PixelPlanes>;

  // The last panel of the last tap reads past the grid, for positions that nobody wants.
  static int64_t elements(const SplitGrid& grid, int64_t channels) {
    return (grid.offset(grid.y.phases, 0, 0) + kGridStep) * channels;
  }

  PixelPlanes(const Correlation<BFloat16>& c, const SplitGrid& grid, int64_t units)
      : c_(c), offsets_(c.images.taps() / 32), pixels_(units * elements(grid, c.images.channels)) {}

  static bool pack_weight(Engine&, const Correlation<BFloat16>& c, int64_t channel, uint16_t* out) {
    const int64_t taps = c.images.taps();
    pack_weight_panel(c.weight + channel * taps, c.channels - channel, taps, out);
    return true;
  }

  void set_grid(const SplitGrid& grid) {
    const int64_t channels = c_.images.channels;
    elements_ = elements(grid, channels);
    int64_t* offset = offsets_.get();
    for (int64_t ky = 0; ky < c_.images.y.taps; ++ky) {
      for (int64_t kx = 0; kx < c_.images.x.taps; ++kx) {
        for (int64_t c = 0; c < channels; c += 32) {
          *offset++ = grid.tap_offset(0, ky, kx) * channels + c;
        }
      }
    }
  }

  bool write(const Images<BFloat16>& band, int64_t n, int64_t unit) {
    const SplitGrid grid(band.y, band.x);
    const PhasedAxis &y = grid.y, &x = grid.x;
    const int64_t first = n * band.y.size * band.x.size, channels = band.channels;
    uint16_t* to = pixels_.get() + unit * elements_;
    for (int64_t fy = 0; fy < y.phases; ++fy) {
      for (int64_t fx = 0; fx < x.phases; ++fx) {
        const int64_t begin = x.begin(fx), end = x.end(fx);
        for (int64_t row = 0; row < y.length; ++row, to += grid.pitch() * channels) {
          const bool inside = row >= y.begin(fy) && row < y.end(fy) && begin < end;
          const int64_t left = inside ? begin : grid.pitch(), right = inside ? end : left;
          std::memset(to, 0, sizeof(uint16_t) * left * channels);
          if (inside) {
            const int64_t at =
                first + y.coordinate(fy, row) * band.x.size + x.coordinate(fx, begin);
            copy_pixels(band, at * band.total_channels, end - begin, to + begin * channels);
          }
          std::memset(to + right * channels, 0,
                      sizeof(uint16_t) * (grid.pitch() - right) * channels);
        }
      }
    }
    return true;
  }

  PixelTiles tiles(int64_t unit, int64_t p) const {
    const int64_t pixel = c_.images.channels;
    return {pixels_.get() + unit * elements_ + p * pixel, offsets_.get(), pixel};
  }

 private:
  static void copy_pixels(const Images<BFloat16>& band, int64_t at, int64_t count, uint16_t* to) {
    const int64_t channels = band.channels, step = band.x.stride * band.total_channels;
    if (!kMasked && step == channels) {
      return void(std::memcpy(to, band.data + at, sizeof(uint16_t) * count * channels));
    }
    for (int64_t i = 0; i < count; ++i, at += step) {
      for (int64_t c = 0; c < channels; c += 32, to += 32) {
        _mm512_storeu_si512(to, load_words<kMasked>(band, at + c, ~__mmask32{0}));
      }
    }
  }

  const Correlation<BFloat16>& c_;
  int64_t elements_ = 0;
  Scratch<int64_t> offsets_;
  Scratch<uint16_t> pixels_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
