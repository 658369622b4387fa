// Where sums go from numbered positions (grid_simd.h): to a result, with its epilogue.
#pragma once

#include "conv2d/grid_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// The result's map with rows and columns told apart, where a dense one runs them together.
template <class T>
PositionMap grid_map(const Correlation<T>& c) {
  const Axis &y = c.images.y, &x = c.images.x;
  if (c.map.cols == x.positions && c.map.rows == y.positions) return c.map;
  const int64_t pixel = c.map.col_stride, image = y.positions * x.positions * pixel;
  return {x.positions, y.positions, c.channels_last ? image : c.map.image_stride,
          x.positions * pixel, pixel};
}

// Positions [p, p + count), the first of them in row y at column x.
struct GridStretch {
  int64_t p, count, y, x;

  GridStretch(const Numbering& all, int64_t first, int64_t number)
      : p(first), count(number), y(first / all.pitch), x(first % all.pitch) {}
  GridStretch(const Numbering& all, int64_t row, int64_t column, int64_t number)
      : p(row * all.pitch + column), count(number), y(row), x(column) {}

  // [begin, end) of these, which lie in one row.
  GridStretch part(int64_t begin, int64_t end) const {
    GridStretch some = *this;
    some.p += begin, some.x += begin, some.count = end - begin;
    return some;
  }
};

// Sums of one line after another, `stride` apart.
struct GridSums {
  const float* data;
  int64_t stride;
};

template <class T>
class GridSink {
  using V = Vec<float>;

 public:
  static constexpr int kMaxPositions = 64;

  explicit GridSink(const Correlation<T>& c)
      : c_(c), map_(grid_map(c)), least_(V::set1(Lines<float>::relu_floor(c.epilogue.relu))) {}

  // Where row `row` of image n begins: `out` below, of a grid of rows from there on.
  T* rows(int64_t n, int64_t row) const {
    return c_.result + n * map_.image_stride + row * map_.row_stride;
  }

  // Those positions, of one row, as lines of channels from i on.
  Lines<T> pixel_lines(const GridStretch& at, int64_t i, T* out) const {
    const int64_t offset = at.y * map_.row_stride + at.x * map_.col_stride;
    return {.out = out + offset + i,
            .stride = map_.col_stride,
            .col_bias = c_.epilogue.bias != nullptr ? c_.epilogue.bias + i : nullptr,
            .floor = Lines<T>::relu_floor(c_.epilogue.relu)};
  }

  // Whether a row of a channel is a run of memory.
  bool has_plane_lines() const { return !c_.channels_last && map_.col_stride == 1; }

  // Row `row` of image n, of channels from i on: of planes that have such lines.
  Lines<T> plane_lines(int64_t i, int64_t n, int64_t row) const {
    return {.out = channel(rows(n, row), i),
            .stride = c_.channel_stride,
            .row_bias = c_.epilogue.bias != nullptr ? c_.epilogue.bias + i : nullptr,
            .floor = Lines<T>::relu_floor(c_.epilogue.relu)};
  }

  // Asks for a part of the lines that storing the same will write: they are many, of as many
  // pages, and all at once they would keep the products' loads waiting.
  void prefetch(const Numbering& all, GridStretch at, int64_t i, int64_t channels, T* out, int part,
                int parts) const {
    constexpr int64_t kLine = 64 / sizeof(T);
    const auto begin = [&](int64_t count, int k) { return count * k / parts; };
    int64_t first = 0, end = channels;
    if (c_.channels_last) {
      at = at.part(begin(at.count, part), begin(at.count, part + 1));
    } else {
      first = begin(channels, part), end = begin(channels, part + 1);
    }
    out = channel(out, i + first);
    for_rows(all, at, [&](int64_t, int64_t run, int64_t offset) {
      const int64_t lines = c_.channels_last ? run : end - first;
      const int64_t stride = c_.channels_last ? map_.col_stride : c_.channel_stride;
      const int64_t length = c_.channels_last ? channels : run * map_.col_stride;
      for (int64_t k = 0; k < lines; ++k) {
        const T* line = out + offset + k * stride;
        for (int64_t v = 0; v < length; v += kLine) prefetch_to_write(line + v);
      }
    });
  }

  // Up to a vector of channels from i on, a line of positions for each.
  void store_channels(const Numbering& all, const GridStretch& at, int64_t i, int channels,
                      GridSums sums, T* out) const {
    out = channel(out, i);
    if (!c_.channels_last) return store_planes(all, at, i, channels, sums, out);
    const V bias = load_bias(i, channels);
    for_rows(all, at, [&](int64_t q, int64_t run, int64_t offset) {
      for (int64_t v = 0; v < run; v += V::kWidth) {
        V block[V::kWidth];
        for (int k = 0; k < V::kWidth; ++k) {
          block[k] = V::load(sums.data + k * sums.stride + q + v);
        }
        transpose(block);
        T* to = out + offset + v * map_.col_stride;
        const int n = static_cast<int>(std::min<int64_t>(V::kWidth, run - v));
        for (int k = 0; k < n; ++k, to += map_.col_stride) {
          store(finish(block[k] + bias), to, channels);
        }
      }
    });
  }

  // A row of channels from i on, a line of positions for each; the first goes to `out`.
  void store_row(int64_t i, int channels, GridSums sums, T* out) const {
    store_lines(i, channels, map_.cols, sums, out);
  }

  // Up to kMaxPositions positions, for each a line of up to two vectors of channels from i on.
  void store_positions(const Numbering& all, const GridStretch& at, int64_t i, int64_t channels,
                       GridSums sums, T* out) const {
    if (c_.channels_last) return store_pixels(all, at, i, channels, sums, channel(out, i));
    for (int64_t c = 0; c < channels; c += V::kWidth, sums.data += V::kWidth) {
      const int some = static_cast<int>(std::min<int64_t>(V::kWidth, channels - c));
      alignas(64) float lines[V::kWidth * kMaxPositions + V::kWidth];  // read on
      for (int64_t q = 0; q < at.count; q += V::kWidth) {
        V block[V::kWidth];
        for (int k = 0; k < V::kWidth; ++k) block[k] = V::load(sums.data + (q + k) * sums.stride);
        transpose(block);
        for (int k = 0; k < some; ++k) block[k].store(lines + k * kMaxPositions + q);
      }
      store_planes(all, at, i + c, some, {lines, kMaxPositions}, channel(out, i + c));
    }
  }

 private:
  T* channel(T* out, int64_t i) const {
    return out + i * (c_.channels_last ? 1 : c_.channel_stride);
  }

  // Whether the next row's positions follow those of a row.
  bool is_dense(const Numbering& all) const {
    return all.pitch == map_.cols && map_.row_stride == all.pitch * map_.col_stride;
  }

  // f(position within the stretch, count, offset of the first in the result) for each row.
  template <class F>
  void for_rows(const Numbering& all, const GridStretch& at, const F& f) const {
    const int64_t pitch = all.pitch, end = std::min(at.p + at.count, all.span);
    if (is_dense(all)) {
      return f(0, end - at.p, at.p * map_.col_stride);
    }
    int64_t y = at.y, x = at.x;
    for (int64_t q = at.p; q < end; q += pitch - x, x = 0, ++y) {
      const int64_t run = std::min(map_.cols - x, end - q);
      if (run > 0) f(q - at.p, run, y * map_.row_stride + x * map_.col_stride);
    }
  }

  V load_bias(int64_t i, int channels) const {
    return c_.epilogue.bias != nullptr ? V::load(c_.epilogue.bias + i, channels) : V::zero();
  }

  // The epilogue's ReLU, decided once: max returns its second operand for NaN, which keeps it.
  V finish(V x) const { return V::max(least_, x); }

  // A pixel's line of memory is written in one go.
  void store_pixels(const Numbering& all, const GridStretch& at, int64_t i, int64_t channels,
                    GridSums sums, T* out) const {
    const int first = static_cast<int>(std::min<int64_t>(V::kWidth, channels));
    const int second = static_cast<int>(channels) - first;
    const V bias = load_bias(i, first), more = load_bias(i + first, second);
    for_rows(all, at, [&](int64_t q, int64_t run, int64_t offset) {
      const float* from = sums.data + q * sums.stride;
      T* to = out + offset;
      for (int64_t v = 0; v < run; ++v, from += sums.stride, to += map_.col_stride) {
        store(finish(V::load(from) + bias), to, first);
        if (second > 0) store(finish(V::load(from + V::kWidth) + more), to + V::kWidth, second);
      }
    });
  }

  void store_planes(const Numbering& all, const GridStretch& at, int64_t i, int channels,
                    GridSums lines, T* out) const {
    for_rows(all, at, [&](int64_t q, int64_t run, int64_t offset) {
      store_lines(i, channels, run, {lines.data + q, lines.stride}, out + offset);
    });
  }

  // A line of `run` positions for each channel.
  void store_lines(int64_t i, int channels, int64_t run, GridSums lines, T* out) const {
    for (int k = 0; k < channels; ++k, lines.data += lines.stride, out = channel(out, 1)) {
      const T* bias = c_.epilogue.bias;
      const V b = V::set1(bias != nullptr ? static_cast<float>(bias[i + k]) : 0.0f);
      for (int64_t v = 0; v < run; v += V::kWidth) {
        const int n = static_cast<int>(std::min<int64_t>(V::kWidth, run - v));
        const V x = finish(V::load(lines.data + v) + b);
        T* to = out + v * map_.col_stride;
        map_.col_stride == 1 ? store(x, to, n) : store_apart(x, to, n);
      }
    }
  }

  void store_apart(V x, T* to, int n) const {
    T elements[V::kWidth];
    x.store(elements);
    for (int k = 0; k < n; ++k, to += map_.col_stride) *to = elements[k];
  }

  const Correlation<T>& c_;
  const PositionMap map_;
  const V least_;  // 0 for ReLU
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
