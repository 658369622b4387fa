// Tiles of Winograd's minimal filtering F(2×2, 3×3) (Lavin & Gray 2016, arXiv:1509.09308): four
// results of a 2×2 tile take 16 products of transformed numbers instead of 36,
// y = Aᵀ (G w Gᵀ ⊙ Bᵀ x B) A, and sums over channels alone: its error is below the direct sum's.
//
// A number that is not finite spreads as it does in the direct sum, but infinities come out as NaN,
// and sums may overflow that would not: images with such results are left to the direct sum.
#pragma once

#include <array>

#include "conv2d/correlate_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Tiles of the positions of a batch of images.
struct TileGrid {
  static constexpr int kPoints = 16;  // products of a tile, of as many transformed numbers

  int64_t lines, columns, count;  // of tiles: an image's, a line's, all images'

  TileGrid(const Axis& y, const Axis& x, int64_t batch)
      : lines(ceil_div(y.positions, 2)),
        columns(ceil_div(x.positions, 2)),
        count(batch * lines * columns) {}

  // Side by side in a line of one image.
  struct Segment {
    int64_t n, line, column, count;

    bool is_below(const Segment& s) const {
      return n == s.n && line == s.line + 1 && column == s.column && count == s.count;
    }
  };

  // f(segment, its first tile) for tiles [begin, end).
  template <class F>
  void for_segments(int64_t begin, int64_t end, const F& f) const {
    for (int64_t t = begin; t < end;) {
      const int64_t line = t / columns, column = t % columns;
      const int64_t some = std::min(columns - column, end - t);
      f(Segment{line / lines, line % lines, column, some}, t);
      t += some;
    }
  }
};

// Whether channels leave few lanes of a panel empty.
inline bool fills_panel(int64_t channels) { return 4 * channels >= 3 * TapTile::kCols; }

// Windows, channels and tiles of an image for which the products saved are worth the transforms.
// The batch has no say: an image's results do not depend on its neighbours.
template <class T>
bool winograd_pays(const Images<T>& images, int64_t channels) {
  const Axis &y = images.y, &x = images.x;
  const auto fits = [](const Axis& a) { return a.taps == 3 && a.stride == 1 && a.dilation == 1; };
  constexpr int64_t kLeastDepth = 16;
  if (!fits(y) || !fits(x) || images.channels < kLeastDepth || !fills_panel(channels)) return false;
  const TileGrid tiles(y, x, 1);
  return tiles.count >= 16 &&
         4 * TileGrid::kPoints * tiles.count <= 3 * 9 * images.positions_per_image();
}

template <class V>
void transform_input(const V (&x)[4], V (&out)[4]) {
  out[0] = x[0] - x[2];
  out[1] = x[1] + x[2];
  out[2] = x[2] - x[1];
  out[3] = x[1] - x[3];
}

// The pixels of a segment, kSize rows to a tile, as float32 with zeros outside the image. Rows that
// the segment above has filled are kept.
template <int kSize, bool kMasked, class T>
class TilePixels {
 public:
  // Room for `most` tiles.
  TilePixels(const Images<T>& images, bool channels_last, int64_t most)
      : images_(images),
        channels_last_(channels_last),
        width_(ceil_div(images.channels, TapTile::kCols) * TapTile::kCols),
        pitch_(width_ + 16),
        row_((2 * most + kSize - 2) * pitch_),
        pixels_(kSize * row_) {}

  int64_t pitch() const { return pitch_; }

  // The rows of a segment's tiles.
  std::array<float*, kSize> fill(const TileGrid::Segment& segment) {
    const int kept = segment.is_below(at_) ? kSize - 2 : 0;
    at_ = segment;
    std::array<float*, kSize> rows;
    for (int r = 0; r < kSize; ++r) {
      rows[r] = pixels_.get() + (2 * segment.line + r) % kSize * row_;
      if (r >= kept) fill_row(r, rows[r]);
    }
    return rows;
  }

 private:
  void fill_row(int r, float* out) const {
    const Axis &y = images_.y, &x = images_.x;
    const int64_t width = 2 * at_.count + kSize - 2;
    const int64_t left = x.origin + 2 * at_.column, iy = y.origin + 2 * at_.line + r;
    if (iy < 0 || iy >= y.size) return zero(out, width);
    const int64_t begin = std::clamp<int64_t>(-left, 0, width);
    const int64_t end = std::clamp<int64_t>(x.size - left, begin, width);
    const int64_t pixel = channels_last_ ? images_.total_channels : 1;
    const int64_t image = at_.n * images_.total_channels * y.size * x.size;
    zero(out, begin);
    zero(out + end * pitch_, width - end);
    copy_pixels<kMasked>(images_, channels_last_, image + (iy * x.size + left + begin) * pixel,
                         end - begin, images_.channels, out + begin * pitch_, width_, pitch_);
  }
  void zero(float* out, int64_t pixels) const {
    std::memset(out, 0, sizeof(float) * pixels * pitch_);
  }

  const Images<T> images_;
  const bool channels_last_;
  const int64_t width_, pitch_;  // pixels a power of two apart would share few sets of L1
  const int64_t row_;
  Scratch<float> pixels_;
  TileGrid::Segment at_{-1, 0, 0, 0};
};

// Transformed pixels of a block of tiles: [point][tile][channel].
class InputTiles {
  using V = Vec<float>;

 public:
  // For pixels `pitch` apart of `channels`, with room for `most` tiles.
  InputTiles(int64_t channels, int64_t pitch, int64_t most)
      : channels_(channels),
        pitch_(pitch),
        point_((most + 1) * pitch),
        data_(TileGrid::kPoints * point_) {}

  int64_t pitch() const { return pitch_; }
  const float* point(int64_t k) const { return data_.get() + k * point_; }

  // `count` tiles of four rows of pixels, as tiles from `first` on.
  [[gnu::noinline]] void fill(const std::array<float*, 4>& rows, int64_t count, int64_t first) {
    constexpr int kTop[] = {0, 1, 2, 1}, kBottom[] = {2, 2, 1, 3};
    for (int64_t c = 0; c < channels_; c += TapTile::kCols) {
      for (int y = 0; y < 4; ++y) {
        float* out = data_.get() + 4 * y * point_ + first * pitch_ + c;
        const float *top = rows[kTop[y]] + c, *bottom = rows[kBottom[y]] + c;
        y == 1 ? transform_line<true>(top, bottom, count, out)
               : transform_line<false>(top, bottom, count, out);
      }
    }
  }

 private:
  // Two vectors of channels, a line of memory, of one row of points.
  template <bool kAdd>
  void transform_line(const float* top, const float* bottom, int64_t count, float* out) const {
    constexpr int kVecs = 2;
    const auto column = [&](int64_t x, int v) {
      const V a = V::load(top + x * pitch_ + v * V::kWidth);
      const V b = V::load(bottom + x * pitch_ + v * V::kWidth);
      return kAdd ? a + b : a - b;
    };
    V line[kVecs][4];
    for (int v = 0; v < kVecs; ++v) line[v][0] = column(0, v), line[v][1] = column(1, v);
    for (int64_t t = 0; t < count; ++t, out += pitch_) {
      for (int v = 0; v < kVecs; ++v) {
        V(&x)[4] = line[v];
        x[2] = column(2 * t + 2, v), x[3] = column(2 * t + 3, v);
        V points[4];
        transform_input(x, points);
        for (int k = 0; k < 4; ++k) points[k].store(out + k * point_ + v * V::kWidth);
        x[0] = x[2], x[1] = x[3];
      }
    }
  }

  const int64_t channels_, pitch_, point_;
  Scratch<float> data_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
