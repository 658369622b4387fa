// A padded grid on which a tap is one offset.
//
// Coordinates of one residue modulo the stride, a phase, lie side by side, rows `pitch` apart.
// Positions numbered flat over such a grid meet tap t at flat + offset(t), a vector or a panel of
// them in a row whatever the stride; the few numbers at a row's end that are no positions are the
// price. So an element is prepared once, not once for every tap that meets it.
#pragma once

#include "conv2d/patches_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

inline constexpr int64_t kGridStep = 32;  // positions of a panel

struct PhasedAxis {
  Axis axis;
  int64_t phases, length;  // of each phase

  explicit PhasedAxis(const Axis& a)
      : axis(a),
        phases(std::min(a.stride, (a.taps - 1) * a.dilation + 1)),
        length(a.positions + (a.taps - 1) * a.dilation / a.stride) {}

  int64_t phase(int64_t tap) const { return tap * axis.dilation % axis.stride; }
  int64_t shift(int64_t tap) const { return tap * axis.dilation / axis.stride; }
  int64_t coordinate(int64_t phase, int64_t i) const {
    return axis.origin + phase + i * axis.stride;
  }
  // Elements of a phase that lie in the image are [begin(phase), end(phase)).
  int64_t begin(int64_t phase) const {
    return std::clamp<int64_t>(ceil_div_signed(-coordinate(phase, 0), axis.stride), 0, length);
  }
  int64_t end(int64_t phase) const {
    return std::clamp<int64_t>(ceil_div_signed(axis.size - coordinate(phase, 0), axis.stride),
                               begin(phase), length);
  }
};

// How positions are numbered: rows begin `pitch` apart, and `span` is past the last position.
struct Numbering {
  int64_t pitch, span;
};

struct PaddedGrid {
  PhasedAxis y, x;
  int64_t plane;  // elements of a channel, padded to whole panels
  int64_t span;   // flat positions, those at the rows' ends included

  PaddedGrid(const Axis& y_axis, const Axis& x_axis) : y(y_axis), x(x_axis) {
    plane = ceil_div(y.phases * x.phases * y.length * x.length, kGridStep) * kGridStep;
    span = (y_axis.positions - 1) * pitch() + x_axis.positions;
  }
  int64_t pitch() const { return x.length; }
  Numbering flat() const { return {pitch(), span}; }
  int64_t panels() const { return ceil_div(span, kGridStep); }
  int64_t offset(int64_t phase_y, int64_t phase_x, int64_t row) const {
    return ((phase_y * x.phases + phase_x) * y.length + row) * pitch();
  }
  int64_t tap_offset(int64_t channel, int64_t ky, int64_t kx) const {
    return channel * plane + offset(y.phase(ky), x.phase(kx), y.shift(ky)) + x.shift(kx);
  }
  // Elements of an image; the last panel of the last tap reads past its plane.
  int64_t part_elements(int64_t channels) const { return channels * plane + 2 * kGridStep; }
};

// Offsets of all taps in the order of the layout's weights: (channel, ky, kx) or (ky, kx, channel).
template <class T>
void tap_offsets(const Images<T>& images, const PaddedGrid& grid, bool channels_last,
                 int64_t* offsets) {
  const int64_t channels = images.channels, window = images.y.taps * images.x.taps;
  for (int64_t t = 0; t < channels * window; ++t) {
    const int64_t c = channels_last ? t % channels : t / window;
    const int64_t k = channels_last ? t / channels : t % window;
    offsets[t] = grid.tap_offset(c, k / images.x.taps, k % images.x.taps);
  }
}

// An image of 16-bit words with zeros around: rows of the phases of y one after the other, `line`
// words apart, columns as they are, `pixel` words each. copy(i, count, to) writes `count` of the
// image's pixels, in a row from the i-th on. Returns the end.
template <class T, class Copy>
uint16_t* write_padded_rows(const Images<T>& images, int64_t line, int64_t pixel, uint16_t* to,
                            const Copy& copy) {
  const PhasedAxis y(images.y);
  const Axis& x = images.x;
  const int64_t columns = line / pixel;
  const int64_t begin = std::clamp<int64_t>(-x.origin, 0, columns);
  const int64_t end = std::clamp<int64_t>(x.size - x.origin, begin, columns);
  for (int64_t phase = 0; phase < y.phases; ++phase) {
    for (int64_t row = 0; row < y.length; ++row, to += line) {
      const bool inside = row >= y.begin(phase) && row < y.end(phase) && begin < end;
      const int64_t left = (inside ? begin : columns) * pixel, right = inside ? end * pixel : left;
      std::memset(to, 0, sizeof(uint16_t) * left);
      if (inside) {
        const int64_t first = y.coordinate(phase, row) * x.size + x.origin + begin;
        copy(first, end - begin, to + left);
      }
      std::memset(to + right, 0, sizeof(uint16_t) * (line - right));
    }
  }
  return to;
}

// Whole images on their grid, or bands of their rows: the axes of `images` say which.
template <bool kMasked, class T>
class GridPlanes {
 public:
  // For `together` channels at a time.
  GridPlanes(const Images<T>& images, const PaddedGrid& grid, bool channels_last, int64_t together)
      : images_(images),
        grid_(grid),
        channels_last_(channels_last),
        planes_(grid.part_elements(together)) {
    std::memset(planes_.get(), 0, sizeof(float) * grid.part_elements(together));
  }

  // What of `count` channels of image n from c on lies in the image; the rest stays zero.
  const float* fill(int64_t n, int64_t c, int64_t count) {
    const int64_t some = channels_last_ ? Vec<float>::kWidth : 1;
    for (int64_t g = 0; g < count; g += some) {
      fill_some(n, c + g, static_cast<int>(std::min(some, count - g)), g * grid_.plane);
    }
    return planes_.get();
  }

 private:
  void fill_some(int64_t n, int64_t c, int count, int64_t out) {
    const PhasedAxis &y = grid_.y, &x = grid_.x;
    const int64_t pixel = channels_last_ ? images_.total_channels : 1;
    const int64_t image = n * images_.total_channels * y.axis.size * x.axis.size +
                          channel_offset(channels_last_, c, y.axis.size * x.axis.size);
    for (int64_t fy = 0; fy < y.phases; ++fy) {
      for (int64_t fx = 0; fx < x.phases; ++fx) {
        const int64_t begin = x.begin(fx), length = x.end(fx) - begin;
        for (int64_t row = y.begin(fy); row < y.end(fy); ++row) {
          const int64_t at = y.coordinate(fy, row) * x.axis.size + x.coordinate(fx, begin);
          fill_row(image + at * pixel, x.axis.stride * pixel, length, count,
                   planes_.get() + out + grid_.offset(fy, fx, row) + begin);
        }
      }
    }
  }

  void fill_row(int64_t from, int64_t step, int64_t length, int count, float* out) const {
    using V = Vec<float>;
    if (step > 1) return fill_apart(from, step, length, count, out);
    for (int64_t i = 0; i < length; i += V::kWidth) {
      const int n = static_cast<int>(std::min<int64_t>(V::kWidth, length - i));
      load_masked<T, kMasked>(images_, from + i, n).store(out + i, n);
    }
  }

  // Elements that lie apart in memory, those of `count` channels side by side.
  [[gnu::noinline]] void fill_apart(int64_t from, int64_t step, int64_t length, int count,
                                    float* out) const {
    using V = Vec<float>;
    if (count > 4 || kMasked) return fill_pixels(from, step, length, count, out);
    for (int g = 0; g < count; ++g) {
      for (int64_t i = 0; i < length; i += V::kWidth) {
        const int n = static_cast<int>(std::min<int64_t>(V::kWidth, length - i));
        const V x = load_strided(images_.data + from + g + i * step, step, n);
        x.store(out + g * grid_.plane + i, n);
      }
    }
  }

  // Pixels of up to a vector of channels to a plane for each.
  void fill_pixels(int64_t from, int64_t step, int64_t length, int count, float* out) const {
    using V = Vec<float>;
    for (int64_t i = 0; i < length; i += V::kWidth) {
      const int n = static_cast<int>(std::min<int64_t>(V::kWidth, length - i));
      V block[V::kWidth];
      for (int r = 0; r < V::kWidth; ++r) {
        block[r] =
            r < n ? load_masked<T, kMasked>(images_, from + (i + r) * step, count) : V::zero();
      }
      transpose(block);
      for (int g = 0; g < count; ++g) block[g].store(out + g * grid_.plane + i, n);
    }
  }

  const Images<T> images_;
  const PaddedGrid grid_;
  const bool channels_last_;
  Scratch<float> planes_;
};

// Rows [row, row + rows) of an image, as images of their own.
template <class T>
Images<T> row_band(Images<T> images, int64_t row, int64_t rows) {
  images.y.origin += row * images.y.stride;
  images.y.positions = rows;
  return images;
}
template <class T>
PaddedGrid band_grid(const Images<T>& images, int64_t rows) {
  return {row_band(images, 0, rows).y, images.x};
}

// How the rows of each image are cut: `count` bands of `rows`, the last one maybe of fewer.
struct RowBands {
  int64_t rows, count;
};

// As few as keep bytes(rows of a band) within `most`, or some more where those would leave a thread
// waiting for another.
template <class Bytes>
RowBands cut_rows(int64_t rows, int64_t batch, int64_t most, const Bytes& bytes,
                  int64_t threads = num_threads()) {
  int64_t least = 1;
  while (ceil_div(rows, least) > 4 && bytes(ceil_div(rows, least)) > most) ++least;
  const auto rows_of_a_thread = [&](int64_t bands) {
    return ceil_div(batch * bands, threads) * ceil_div(rows, bands);
  };
  int64_t best = least;
  for (int64_t bands = least; bands <= std::min(rows, least + threads); ++bands) {
    if (rows_of_a_thread(bands) < rows_of_a_thread(best)) best = bands;
  }
  const int64_t height = ceil_div(rows, best);
  return {height, ceil_div(rows, height)};
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
