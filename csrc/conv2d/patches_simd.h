// The im2col matrix of an image as GEMM operands: columns are packed from the image panel by panel
// and never stored. Also the sinks that write the results where their positions lie.
//
// A position is an element of the result's (image, row, column) grid, a tap an element of the
// kernel with its channels. What is contiguous in memory decides the natural order: positions of
// one tap in planar (NCHW) images, channels of one position in pixel (NHWC) images. `Transposed`
// gives the other order, which the weight gradient and the NHWC forward need.
#pragma once

#include <limits>

#include "conv2d/geometry_simd.h"
#include "gemm/gemm_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

template <class Acc>
void zero_rows(Acc* out, int64_t row_stride, int64_t rows, int64_t count) {
  using V = Vec<Acc>;
  for (int64_t v = 0; v < count; v += V::kWidth) {
    const int n = static_cast<int>(std::min<int64_t>(V::kWidth, count - v));
    for (int64_t r = 0; r < rows; ++r) V::zero().store(out + r * row_stride + v, n);
  }
}

template <class T, bool kMasked>
Vec<acc_t<T>> load_masked(const Images<T>& images, int64_t offset, int n) {
  using V = Vec<acc_t<T>>;
  const V x = load(images.data + offset, n);
  if constexpr (!kMasked) return x;
  return V::where_positive(load(images.mask + offset, n), x);
}

// n elements `stride` apart.
template <class T>
[[gnu::always_inline]] inline Vec<acc_t<T>> load_strided(const T* data, int64_t stride, int n) {
  using V = Vec<acc_t<T>>;
  if constexpr (std::is_same_v<T, float>) {
    constexpr int64_t kMost = std::numeric_limits<int>::max() / V::kWidth;
    if (n == V::kWidth && stride == 2) return V::load_even(data);
    if (n == V::kWidth && stride <= kMost) return V::gather(data, static_cast<int>(stride));
  }
  if constexpr (requires { V::load_even(data, n); }) {
    if (stride == 2) return V::load_even(data, n);
  }
  alignas(64) acc_t<T> elements[V::kWidth];
  for (int i = 0; i < n; ++i) elements[i] = static_cast<acc_t<T>>(data[i * stride]);
  return V::load(elements, n);
}

// rows × count elements to out[r * out_stride + v] from the offset r * in_stride + v * step.
template <bool kMasked, class T>
void copy_rows(const Images<T>& images, int64_t offset, int64_t in_stride, int64_t step,
               acc_t<T>* out, int64_t out_stride, int64_t rows, int64_t count) {
  using V = Vec<acc_t<T>>;
  // Rows are of many pages, too many for the machine to foresee: what follows is asked for.
  const auto prefetch = [&](int64_t from) {
    prefetch_to_read(images.data + from + count);
    if constexpr (kMasked) prefetch_to_read(images.mask + from + count);
  };
  for (int64_t v = 0; v < count; v += V::kWidth) {
    const int n = static_cast<int>(std::min<int64_t>(V::kWidth, count - v));
    int64_t from = offset + v * step;
    acc_t<T>* to = out + v;
    if (step != 1) {
      for (int64_t r = 0; r < rows; ++r, from += in_stride, to += out_stride) {
        load_strided(images.data + from, step, n).store(to, n);
      }
    } else if (n == V::kWidth) {
      for (int64_t r = 0; r < rows; ++r, from += in_stride, to += out_stride) {
        prefetch(from);
        load_masked<T, kMasked>(images, from, V::kWidth).store(to);
      }
    } else {
      for (int64_t r = 0; r < rows; ++r, from += in_stride, to += out_stride) {
        load_masked<T, kMasked>(images, from, n).store(to, n);
      }
    }
  }
}

// NCHW: i is a position, p a tap in the order (channel, ky, kx).
template <class T, bool kMasked = false>
struct PlanarPatches {
  using Element = T;
  using Acc = acc_t<T>;
  static constexpr bool kPackOnce = false;  // that would store the columns
  static constexpr int64_t kStretch = 112;
  Images<T> images;
  int64_t first, extent;  // the positions of this operand

  template <int kWidth>
  void pack(int64_t i0, int64_t p0, int64_t depth, Acc* panel) const {
    const int64_t lanes = std::min<int64_t>(kWidth, extent - i0);
    Position at(images, first + i0);
    for (int64_t lane = 0; lane < lanes;) {
      const int64_t run = std::min(lanes - lane, images.x.positions - at.x);
      pack_run<kWidth>(at, run, p0, depth, panel + lane);
      lane += run;
      at.next_row(images);
    }
    zero_rows(panel + lanes, kWidth, depth, kWidth - lanes);
  }

 private:
  // `run` positions from `at` on in one row. Channels innermost: they share the bounds.
  template <int kWidth>
  void pack_run(const Position& at, int64_t run, int64_t p0, int64_t depth, Acc* panel) const {
    const Axis &y = images.y, &x = images.x;
    const int64_t window = y.taps * x.taps, plane = y.size * x.size;
    for (int64_t t = 0; t < std::min(window, depth); ++t) {
      const int64_t c = (p0 + t) / window, ky = (p0 + t) % window / x.taps, kx = (p0 + t) % x.taps;
      const int64_t channels = ceil_div(depth - t, window);
      const int64_t iy = y.at(at.y, ky), ix = x.at(at.x, kx);
      Acc* out = panel + t * kWidth;
      int64_t begin = 0, end = 0;  // the part of the run inside the image
      if (iy >= 0 && iy < y.size) {
        begin = std::clamp<int64_t>(ceil_div_signed(-ix, x.stride), 0, run);
        end = std::clamp<int64_t>(ceil_div_signed(x.size - ix, x.stride), begin, run);
      }
      if (end - begin < run) zero_rows(out, window * kWidth, channels, run);
      const int64_t offset =
          (at.n * images.total_channels + c) * plane + iy * x.size + ix + begin * x.stride;
      copy_rows<kMasked>(images, offset, plane, x.stride, out + begin, window * kWidth, channels,
                         end - begin);
    }
  }
};

// NHWC: i is a tap in the order (ky, kx, channel), p a position.
template <class T, bool kMasked = false>
struct PixelPatches {
  using Element = T;
  using Acc = acc_t<T>;
  static constexpr bool kPackOnce = false;
  static constexpr int64_t kStretch = 112;
  Images<T> images;
  int64_t first;  // position of p = 0

  template <int kWidth>
  void pack(int64_t i0, int64_t p0, int64_t depth, Acc* panel) const {
    const int64_t lanes = std::min<int64_t>(kWidth, images.taps() - i0), length = line_length();
    const int64_t lines_per_row = images.x.taps * images.channels / length;
    for (int64_t lane = 0; lane < lanes;) {
      const int64_t line = (i0 + lane) / length, e = (i0 + lane) % length;
      const int64_t run = std::min(lanes - lane, length - e);
      pack_run<kWidth>(line / lines_per_row, line % lines_per_row, e, run, p0, depth, panel + lane);
      lane += run;
    }
    zero_rows(panel + lanes, kWidth, depth, kWidth - lanes);
  }

 private:
  // Taps that lie side by side in memory: a whole row of the kernel, or the channels of one tap.
  int64_t line_length() const {
    const bool row = images.x.dilation == 1 && images.channels == images.total_channels;
    return row ? images.x.taps * images.channels : images.channels;
  }

  // `run` elements from e on of the line that starts at tap (ky, kx).
  template <int kWidth>
  void pack_run(int64_t ky, int64_t kx, int64_t e, int64_t run, int64_t p0, int64_t depth,
                Acc* out) const {
    const Axis &y = images.y, &x = images.x;
    const int64_t pixel = images.total_channels, step = x.stride * pixel, row = x.size * pixel;
    const int64_t origin = x.at(0, kx) * pixel + e;  // of the run, for q = 0, in its image row
    // Positions whose whole run lies in the row.
    const int64_t inner_begin = ceil_div_signed(-origin, step);
    const int64_t inner_end = floor_div(row - run - origin, step) + 1;
    Position at(images, first + p0);
    for (int64_t p = 0; p < depth; at.next_row(images)) {
      const int64_t count = std::min(depth - p, x.positions - at.x), iy = y.at(at.y, ky);
      Acc* rows = out + p * kWidth;
      p += count;
      if (iy < 0 || iy >= y.size) {
        zero_rows(rows, kWidth, count, run);
        continue;
      }
      const int64_t begin = std::clamp<int64_t>(inner_begin - at.x, 0, count);
      const int64_t end = std::clamp<int64_t>(inner_end - at.x, begin, count);
      const int64_t base = (at.n * y.size + iy) * row, offset = origin + at.x * step;
      for (int64_t q = 0; q < begin; ++q) {
        pack_edge(base, offset + q * step, run, row, rows + q * kWidth);
      }
      copy_rows<kMasked>(images, base + offset + begin * step, step, 1, rows + begin * kWidth,
                         kWidth, end - begin, run);
      for (int64_t q = end; q < count; ++q) {
        pack_edge(base, offset + q * step, run, row, rows + q * kWidth);
      }
    }
  }

  // One run that crosses an end of the image row, or lies beyond it.
  void pack_edge(int64_t base, int64_t offset, int64_t run, int64_t row, Acc* out) const {
    const int64_t begin = std::clamp<int64_t>(-offset, 0, run);
    const int64_t end = std::clamp<int64_t>(row - offset, begin, run);
    zero_rows(out, 0, 1, run);
    copy_rows<kMasked>(images, base + offset + begin, 0, 1, out + begin, 0, 1, end - begin);
  }
};

// A source with its i and p exchanged.
template <class Source>
struct Transposed {
  using Element = typename Source::Element;
  using Acc = typename Source::Acc;
  static constexpr bool kPackOnce = Source::kPackOnce;
  static constexpr int64_t kStretch = stretch_of<Source>();
  Source source;
  int64_t extent;  // number of i

  template <int kWidth>
  void pack(int64_t i0, int64_t p0, int64_t depth, Acc* panel) const {
    // Two vectors of p at a time share the source's own address work.
    constexpr int kV = Vec<Acc>::kWidth, kSpan = 2 * kV;
    constexpr int kRows = (kWidth + kV - 1) / kV * kV;
    alignas(64) Acc lines[kRows * kSpan];
    const int64_t rows = std::min<int64_t>(kWidth, extent - i0);
    zero_rows(lines + rows * kSpan, kSpan, kRows - rows, kSpan);
    for (int64_t p = 0; p < depth; p += kSpan) {
      source.template pack<kSpan>(p0 + p, i0, rows, lines);
      const int columns = static_cast<int>(std::min<int64_t>(kSpan, depth - p));
      transpose_lines<kWidth, kSpan>(lines, columns, panel + p * kWidth);
    }
  }

 private:
  template <int kWidth, int kSpan>
  static void transpose_lines(const Acc* lines, int columns, Acc* panel) {
    constexpr int kV = Vec<Acc>::kWidth;
    if constexpr (std::is_same_v<Acc, float>) {
      for (int c = 0; c < kWidth; c += kV) {
        const int room = std::min(kV, kWidth - c);
        for (int q = 0; q < columns; q += kV) {
          Vec<Acc> block[kV];
          for (int r = 0; r < kV; ++r) block[r] = Vec<Acc>::load(lines + (c + r) * kSpan + q);
          transpose(block);
          const int n = std::min(kV, columns - q);
          for (int s = 0; s < n; ++s) block[s].store(panel + (q + s) * kWidth + c, room);
        }
      }
    } else {
      for (int q = 0; q < columns; ++q) {
        for (int r = 0; r < kWidth; ++r) panel[q * kWidth + r] = lines[r * kSpan + q];
      }
    }
  }
};

// Pixels of planes: i is a channel, p a position, which runs through the images.
template <class T, bool kMasked = false>
struct PlanarPixels {
  using Element = T;
  using Acc = acc_t<T>;
  static constexpr bool kPackOnce = true;
  Images<T> images;
  int64_t first;  // position of p = 0

  template <int kWidth>
  void pack(int64_t i0, int64_t p0, int64_t depth, Acc* panel) const {
    const int64_t plane = images.y.size * images.x.size;
    for (int64_t p = first + p0, end = p + depth; p < end;) {
      const int64_t run = std::min(end - p, plane - p % plane);
      const int64_t image = p / plane * images.total_channels * plane;
      const StridedOperand<T, kMasked> pixels{images.data + image, images.channels, plane, 1,
                                              kMasked ? images.mask + image : nullptr};
      pixels.template pack<kWidth>(i0, p % plane, run, panel);
      panel += run * kWidth, p += run;
    }
  }
};

// Tile rows are channels, columns are positions.
template <class T>
struct PlanarSink {
  using Acc = acc_t<T>;
  T* y;
  int64_t channel_stride;
  PositionMap map;
  Epilogue<T> epilogue;

  // n positions of a row, with their bias.
  void put(Vec<Acc> x, T* to, int n) const {
    using V = Vec<Acc>;
    x = epilogue(x);
    if (map.col_stride == 1) return store(x, to, n);
    T elements[V::kWidth];
    x.store(elements);
    for (int e = 0; e < n; ++e) to[e * map.col_stride] = elements[e];
  }

  Acc bias(int64_t channel) const {
    return epilogue.bias != nullptr ? static_cast<Acc>(epilogue.bias[channel]) : 0;
  }

  // Of a tile whose positions are one run.
  Lines<T> lines(int64_t i, int64_t j, int64_t /*rows*/, int cols) const {
    const bool whole = map.col_stride == 1 && map.run(j) >= cols;
    if (!whole) return {};
    return {.out = y + i * channel_stride + map.offset(j),
            .stride = channel_stride,
            .row_bias = epilogue.bias != nullptr ? epilogue.bias + i : nullptr,
            .floor = Lines<T>::relu_floor(epilogue.relu)};
  }

  void operator()(int64_t i, int64_t j, int rows, int cols, const Acc* tile, int64_t ld) const {
    for (int q = 0; q < cols;) {
      const int run = static_cast<int>(std::min<int64_t>(cols - q, map.run(j + q)));
      map.col_stride == 1 ? lines(i, j + q, rows, run).put_tile(tile + q, ld, rows, run)
                          : put_apart(i, j + q, rows, run, tile + q, ld);
      q += run;
    }
  }

 private:
  void put_apart(int64_t i, int64_t j, int rows, int run, const Acc* tile, int64_t ld) const {
    using V = Vec<Acc>;
    T* out = y + i * channel_stride + map.offset(j);
    for (int r = 0; r < rows; ++r, out += channel_stride, tile += ld) {
      const V b = V::set1(bias(i + r));
      for (int q = 0; q < run; q += V::kWidth) {
        const int n = std::min(V::kWidth, run - q);
        put(V::load(tile + q, n) + b, out + q * map.col_stride, n);
      }
    }
  }
};

// Tile rows are positions, columns are channels.
template <class T>
struct PixelSink {
  using Acc = acc_t<T>;
  T* y;
  PositionMap map;
  Epilogue<T> epilogue;

  // Of n channels.
  Vec<Acc> bias(int64_t channel, int n) const {
    using V = Vec<Acc>;
    return epilogue.bias != nullptr ? V::load(epilogue.bias + channel, n) : V::zero();
  }

  // n channels of a position, with their bias.
  void put(Vec<Acc> x, T* to, int n) const { store(epilogue(x), to, n); }

  // Of a tile whose positions are one run.
  Lines<T> lines(int64_t i, int64_t j, int64_t rows, int /*cols*/) const {
    if (map.run(i) < rows) return {};
    return {.out = y + map.offset(i) + j,
            .stride = map.col_stride,
            .col_bias = epilogue.bias != nullptr ? epilogue.bias + j : nullptr,
            .floor = Lines<T>::relu_floor(epilogue.relu)};
  }

  void operator()(int64_t i, int64_t j, int rows, int cols, const Acc* tile, int64_t ld) const {
    for (int r = 0; r < rows;) {
      const int run = static_cast<int>(std::min<int64_t>(rows - r, map.run(i + r)));
      lines(i + r, j, run, cols).put_tile(tile + r * ld, ld, run, cols);
      r += run;
    }
  }
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
