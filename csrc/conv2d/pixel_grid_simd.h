// Bands of an image's rows as float32 pixels, with the padding around them: a tap is an offset from
// the pixel of its position, whatever the stride, and taps side by side are one run of memory. So
// an element is prepared once, not once for every tap that meets it.
#pragma once

#include "conv2d/pixels_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

struct PixelGrid {
  Axis y, x;
  int64_t channels, pixel, line;  // numbers of a pixel; from one, and from a row, to the next

  template <class T>
  explicit PixelGrid(const Images<T>& images)
      : y(images.y),
        x(images.x),
        channels(images.channels),
        pixel(channels),
        line(extent(x, x.positions) * pixel) {}

  // Of images that lie so and need no padding.
  template <class T>
  static PixelGrid in_place(const Images<T>& images) {
    PixelGrid grid(images);
    grid.pixel = images.total_channels, grid.line = images.x.size * images.total_channels;
    return grid;
  }

  // Rows that `rows` of positions meet.
  int64_t height(int64_t rows) const { return extent(y, rows); }
  int64_t elements(int64_t rows) const { return height(rows) * line; }

  // From one position to the next, and where one is.
  int64_t step() const { return x.stride * pixel; }
  int64_t position(int64_t row, int64_t column) const {
    return row * y.stride * line + column * step();
  }

  // Taps of a run: a row of the window, or the channels of one of its elements.
  int64_t run() const { return columns_of_run() * channels; }
  int64_t runs() const { return y.taps * x.taps / columns_of_run(); }
  // Of a run's first tap, from the pixel of a position.
  int64_t run_offset(int64_t run) const {
    const int64_t in_row = x.taps / columns_of_run();
    return run / in_row * y.dilation * line + run % in_row * x.dilation * pixel;
  }

 private:
  static int64_t extent(const Axis& axis, int64_t positions) {
    return (positions - 1) * axis.stride + (axis.taps - 1) * axis.dilation + 1;
  }
  int64_t columns_of_run() const { return x.dilation == 1 && pixel == channels ? x.taps : 1; }
};

// What meets rows [row, row + rows) of image n. The columns beyond the image stay as they are.
template <bool kMasked, class T>
void fill_pixels(const Images<T>& images, const PixelGrid& grid, bool channels_last, int64_t n,
                 int64_t row, int64_t rows, float* out) {
  const Axis &y = images.y, &x = images.x;
  const int64_t channels = images.channels, plane = y.size * x.size;
  const int64_t width = grid.line / channels;
  const int64_t begin = std::clamp<int64_t>(-x.origin, 0, width);
  const int64_t end = std::clamp<int64_t>(x.size - x.origin, begin, width);
  const int64_t image = n * images.total_channels * plane;
  const int64_t pixel = channels_last ? images.total_channels : 1;
  // Planes are read on and on, some at a time; pixels as they lie.
  const int64_t together = channels_last ? channels : Vec<float>::kWidth;
  for (int64_t c = 0; c < channels; c += together) {
    const int64_t some = std::min(together, channels - c);
    float* to = out + begin * channels + c;
    for (int64_t r = 0; r < grid.height(rows); ++r, to += grid.line) {
      const int64_t iy = y.origin + row * y.stride + r;
      if (iy < 0 || iy >= y.size) {
        if (c == 0) std::memset(out + r * grid.line, 0, sizeof(float) * grid.line);
        continue;
      }
      const int64_t from = image + channel_offset(channels_last, c, plane) +
                           (iy * x.size + x.origin + begin) * pixel;
      if (channels_last && channels == images.total_channels) {
        copy_run<kMasked>(images, from, (end - begin) * channels, to);
      } else {
        copy_pixels<kMasked>(images, channels_last, from, end - begin, some, to, some, channels);
      }
    }
  }
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
