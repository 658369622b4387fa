// Where the sums of AMX tiles go: from the flat positions of a grid (split_image_amx.h) to a
// result.
#pragma once

#include "conv2d/split_image_amx.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Columns leave SplitPlanes::tiles in the order of the 128-bit lanes' halves; this puts 32 back in
// order.
inline void order_columns(__m512& low, __m512& high) {
  const __m512 even = low, odd = high;
  low = _mm512_permutex2var_ps(
      even, _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23), odd);
  high = _mm512_permutex2var_ps(
      even, _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31), odd);
}

// The result's map with rows and columns told apart, where a dense one runs them together.
template <class T>
PositionMap grid_map(const Correlation<T>& c) {
  const Axis &y = c.images.y, &x = c.images.x;
  if (c.map.cols == x.positions && c.map.rows == y.positions) return c.map;
  const int64_t pixel = c.map.col_stride, image = y.positions * x.positions * pixel;
  return {x.positions, y.positions, c.channels_last ? image : c.map.image_stride,
          x.positions * pixel, pixel};
}

// Panels of flat positions from p on.
struct GridStretch {
  int64_t p, panels;
};

// Writes finished tiles, channels × flat positions of a grid, where the result's positions lie.
template <class T>
class GridSink {
 public:
  GridSink(const Correlation<T>& c, int64_t panels)
      : c_(c),
        map_(grid_map(c)),
        line_stride_(panels * kGridStep + 16),  // no power of two: lines share no cache set
        lines_(16 * line_stride_) {}

  // `rows` channels from i on, to where the grid's first position lies; the tiles of the stretch
  // follow each other.
  void operator()(const SplitGrid& grid, const GridStretch& at, int64_t i, int rows,
                  const float* tiles, T* out) const {
    for (int r = 0; r < rows; r += 16) {
      const int some = std::min(16, rows - r);
      for (int64_t panel = 0; panel < at.panels; ++panel) {
        read_tile(i + r, some, tiles + panel * 32 * 32 + r * 32, &lines_[panel * kGridStep]);
      }
      if (c_.channels_last) {
        store_pixels(grid, at, some, out + i + r);
      } else {
        for (int k = 0; k < some; ++k) {
          store_plane(grid, at, &lines_[k * line_stride_], out + (i + r + k) * c_.channel_stride);
        }
      }
    }
  }

 private:
  using V = Vec<float>;

  // 32 positions of `some` channels to their lines.
  void read_tile(int64_t channel, int some, const float* tile, float* line) const {
    const T* bias = c_.epilogue.bias;
    for (int k = 0; k < some; ++k, tile += 32, line += line_stride_) {
      const V b = V::set1(bias != nullptr ? static_cast<float>(bias[channel + k]) : 0.0f);
      __m512 low = _mm512_loadu_ps(tile), high = _mm512_loadu_ps(tile + 16);
      order_columns(low, high);
      c_.epilogue(V{low} + b).store(line);
      c_.epilogue(V{high} + b).store(line + 16);
    }
  }

  // f(flat position within the stretch, count, offset of the first in the result) for each row.
  template <class F>
  void for_rows(const SplitGrid& grid, const GridStretch& at, const F& f) const {
    const int64_t pitch = grid.pitch(), end = std::min(at.p + at.panels * kGridStep, grid.span);
    if (pitch == map_.cols && map_.row_stride == pitch * map_.col_stride) {
      return f(0, end - at.p, at.p * map_.col_stride);
    }
    int64_t y = at.p / pitch, x = at.p % pitch;
    for (int64_t q = at.p; q < end; q += pitch - x, x = 0, ++y) {
      const int64_t run = std::min(map_.cols - x, end - q);
      if (run > 0) f(q - at.p, run, y * map_.row_stride + x * map_.col_stride);
    }
  }

  void store_plane(const SplitGrid& grid, const GridStretch& at, const float* line, T* out) const {
    for_rows(grid, at, [&](int64_t q, int64_t run, int64_t offset) {
      T* to = out + offset;
      if (map_.col_stride != 1) {
        for (int64_t v = 0; v < run; ++v) to[v * map_.col_stride] = static_cast<T>(line[q + v]);
        return;
      }
      int64_t v = 0;
      for (; v + V::kWidth <= run; v += V::kWidth) V::load(line + q + v).store(to + v);
      if (v < run) {
        const int n = static_cast<int>(run - v);
        V::load(line + q + v, n).store(to + v, n);
      }
    });
  }

  void store_pixels(const SplitGrid& grid, const GridStretch& at, int channels, T* out) const {
    for_rows(grid, at, [&](int64_t q, int64_t run, int64_t offset) {
      for (int64_t v = 0; v < run; v += V::kWidth) {
        V block[V::kWidth];
        for (int k = 0; k < V::kWidth; ++k) block[k] = V::load(&lines_[k * line_stride_ + q + v]);
        transpose(block);
        T* to = out + offset + v * map_.col_stride;
        const int n = static_cast<int>(std::min<int64_t>(V::kWidth, run - v));
        for (int k = 0; k < n; ++k, to += map_.col_stride) {
          channels == V::kWidth ? block[k].store(to) : block[k].store(to, channels);
        }
      }
    });
  }

  const Correlation<T>& c_;
  const PositionMap map_;
  const int64_t line_stride_;
  Scratch<float> lines_;  // 16 channels of a stretch
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
