// Convolutions with one input and one output channel per group: no sum over channels, hence no
// GEMM. Planar images are copied plane by plane with their padding, and vectors run along a row;
// pixel images are read in place, and vectors run along the channels.
#pragma once

#include "conv2d/patches_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

inline bool is_depthwise(const Conv2dShape& s) {
  return s.groups > 1 && s.c == s.groups && s.o == s.groups;
}

// A plane with its padding. The columns of a row are sorted by their residue modulo the stride, so
// that neighbouring positions find a tap's elements side by side.
template <class T>
struct PaddedPlane {
  using Acc = acc_t<T>;
  static constexpr int kBlock = 4 * Vec<Acc>::kWidth;  // rows may be read in blocks of it
  Axis y, x;
  int64_t height, width;  // rows, and columns of one residue

  explicit PaddedPlane(const Images<T>& images)
      : y(images.y),
        x(images.x),
        height((y.positions - 1) * y.stride + (y.taps - 1) * y.dilation + 1),
        width(x.positions + (x.taps - 1) * x.dilation / x.stride + kBlock) {}

  int64_t row_stride() const { return x.stride * width; }
  int64_t size() const { return height * row_stride(); }
  int64_t taps() const { return y.taps * x.taps; }

  // Of tap t, relative to the position's own element.
  int64_t tap_offset(int64_t t) const {
    const int64_t column = t % x.taps * x.dilation;
    return t / x.taps * y.dilation * row_stride() + column % x.stride * width + column / x.stride;
  }

  template <bool kMasked>
  void fill(const Images<T>& images, int64_t plane_offset, Acc* out) const {
    std::fill(out, out + size(), Acc{0});
    for (int64_t r = std::max<int64_t>(0, -y.origin); r < std::min(height, y.size - y.origin);
         ++r) {
      const int64_t row = plane_offset + (r + y.origin) * x.size;
      for (int64_t residue = 0; residue < x.stride; ++residue) {
        const int64_t ix = x.origin + residue;  // of column 0
        const int64_t begin = std::max<int64_t>(0, ceil_div_signed(-ix, x.stride));
        const int64_t end = std::min(width - kBlock + 1, ceil_div_signed(x.size - ix, x.stride));
        copy_rows<kMasked>(images, row + ix + begin * x.stride, 0, x.stride,
                           out + r * row_stride() + residue * width + begin, 0, 1, end - begin);
      }
    }
  }
};

// A block of positions in one row.
template <class T>
void depthwise_block(const PaddedPlane<T>& padded, const acc_t<T>* at, const int64_t* offsets,
                     const T* weight, Vec<acc_t<T>> (&sum)[4]) {
  using V = Vec<acc_t<T>>;
  for (V& s : sum) s = V::zero();
  for (int64_t t = 0; t < padded.taps(); ++t) {
    const V w = V::set1(static_cast<acc_t<T>>(weight[t]));
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      sum[v] = V::fma(w, V::load(at + offsets[t] + v * V::kWidth), sum[v]);
    }
  }
}

template <bool kMasked, class T>
void depthwise_planar(const Correlation<T>& c) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  const PaddedPlane<T> padded(c.images);
  constexpr int64_t kBlock = PaddedPlane<T>::kBlock;
  const int64_t plane = padded.y.size * padded.x.size;
  Scratch<int64_t> offsets(padded.taps());
  for (int64_t t = 0; t < padded.taps(); ++t) offsets[t] = padded.tap_offset(t);
  const PlanarSink<T> sink{c.result, c.channel_stride, c.map, c.epilogue};
  parallel_for(0, c.batch * c.channels, 1, [&](int64_t begin, int64_t end) {
    Scratch<Acc> image(padded.size());
    alignas(64) Acc row[kBlock];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / c.channels, channel = task % c.channels;
      padded.template fill<kMasked>(c.images, task * plane, image.get());
      for (int64_t qy = 0; qy < padded.y.positions; ++qy) {
        const Acc* from = image.get() + qy * padded.y.stride * padded.row_stride();
        for (int64_t qx = 0; qx < padded.x.positions; qx += kBlock) {
          V sum[4];
          depthwise_block(padded, from + qx, offsets.get(), c.weight + channel * padded.taps(),
                          sum);
          for (int v = 0; v < 4; ++v) sum[v].store(row + v * V::kWidth);
          const int64_t position = (n * padded.y.positions + qy) * padded.x.positions + qx;
          const int count = static_cast<int>(std::min(kBlock, padded.x.positions - qx));
          sink(channel, position, 1, count, row, kBlock);
        }
      }
    }
  });
}

// Positions of one row, [begin, end) of them inside the image for a tap.
struct Inside {
  int64_t begin, end;
};
inline Inside positions_inside(const Axis& axis, int64_t tap) {
  const int64_t at = axis.at(0, tap);
  const int64_t begin = std::clamp<int64_t>(ceil_div_signed(-at, axis.stride), 0, axis.positions);
  return {begin, std::clamp(ceil_div_signed(axis.size - at, axis.stride), begin, axis.positions)};
}

// Taps of one position inside the image.
inline Inside taps_inside(const Axis& axis, int64_t position) {
  const int64_t at = axis.at(position, 0);
  const int64_t begin = std::clamp<int64_t>(ceil_div_signed(-at, axis.dilation), 0, axis.taps);
  return {begin, std::clamp(ceil_div_signed(axis.size - at, axis.dilation), begin, axis.taps)};
}

// Row qy of the positions of image n, some of them at a time: all channels of these, whose elements
// then are in L1 for every tap.
template <bool kMasked, class T>
struct DepthwisePixels {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  static constexpr int kBlock = 8;  // positions: their sums hide the latency of a product

  const Correlation<T>& c;
  const Acc* weight;  // (taps, channels)
  const PixelSink<T>& sink;
  int64_t n, qy;

  void run() const {
    const Axis& x = c.images.x;
    const int64_t whole = positions_inside(x, 0).begin;
    const int64_t edge = std::max(whole, positions_inside(x, x.taps - 1).end);
    int64_t q = 0;
    for (; q < whole; ++q) sum_positions<1>(q, taps_inside(x, q));
    for (; q + kBlock <= edge; q += kBlock) sum_positions<kBlock>(q, {0, x.taps});
    for (; q < x.positions; ++q) sum_positions<1>(q, taps_inside(x, q));
  }

 private:
  template <int kPositions>
  void sum_positions(int64_t q, const Inside& kx) const {
    alignas(64) Acc tile[kPositions * V::kWidth];
    const int64_t position = (n * c.images.y.positions + qy) * c.images.x.positions + q;
    for (int64_t channel = 0; channel < c.channels; channel += V::kWidth) {
      const int lanes = static_cast<int>(std::min<int64_t>(V::kWidth, c.channels - channel));
      lanes == V::kWidth ? sum<kPositions, true>(q, kx, channel, lanes, tile)
                         : sum<kPositions, false>(q, kx, channel, lanes, tile);
      sink(position, channel, kPositions, lanes, tile, V::kWidth);
    }
  }

  template <int kPositions, bool kWhole>
  void sum(int64_t q, const Inside& kx, int64_t channel, int lanes, Acc* tile) const {
    const Axis &y = c.images.y, &x = c.images.x;
    const Inside ky = taps_inside(y, qy);
    const int64_t step = x.stride * c.channels;
    if constexpr (kWhole) lanes = V::kWidth;
    V sums[kPositions];
#pragma GCC unroll 8
    for (int k = 0; k < kPositions; ++k) sums[k] = V::zero();
    for (int64_t j = ky.begin; j < ky.end; ++j) {
      const int64_t line = (n * y.size + y.at(qy, j)) * x.size;
      for (int64_t i = kx.begin; i < kx.end; ++i) {
        const V w = V::load(weight + (j * x.taps + i) * c.channels + channel, lanes);
        const int64_t from = (line + x.at(q, i)) * c.channels + channel;
#pragma GCC unroll 8
        for (int k = 0; k < kPositions; ++k) {
          sums[k] = V::fma(w, load_masked<T, kMasked>(c.images, from + k * step, lanes), sums[k]);
        }
      }
    }
#pragma GCC unroll 8
    for (int k = 0; k < kPositions; ++k) sums[k].store(tile + k * V::kWidth);
  }
};

template <bool kMasked, class T>
void depthwise_pixel(const Correlation<T>& c) {
  using Acc = acc_t<T>;
  const Axis& y = c.images.y;
  const int64_t taps = y.taps * c.images.x.taps;
  Scratch<Acc> weight(taps * c.channels);  // channels side by side
  for (int64_t i = 0; i < taps * c.channels; ++i) {
    weight[i % taps * c.channels + i / taps] = static_cast<Acc>(c.weight[i]);
  }
  const PixelSink<T> sink{c.result, c.map, c.epilogue};
  parallel_for(0, c.batch * y.positions, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      DepthwisePixels<kMasked, T>{c, weight.get(), sink, row / y.positions, row % y.positions}
          .run();
    }
  });
}

template <bool kMasked, class T>
void depthwise(const Correlation<T>& c) {
  c.channels_last ? depthwise_pixel<kMasked>(c) : depthwise_planar<kMasked>(c);
}

// sums[t] += Σ g · x at taps [0, kTaps) from `offsets` on, over one plane.
template <int kTaps, bool kMasked, class T>
void depthwise_weight_taps(const PaddedPlane<T>& padded, const acc_t<T>* image,
                           const Images<T>& gradient, int64_t plane_offset, const int64_t* offsets,
                           acc_t<T>* sums) {
  using V = Vec<acc_t<T>>;
  V sum[kTaps];
  for (V& s : sum) s = V::zero();
  for (int64_t qy = 0; qy < padded.y.positions; ++qy) {
    const int64_t row = plane_offset + qy * padded.x.positions;
    const acc_t<T>* from = image + qy * padded.y.stride * padded.row_stride();
    for (int64_t qx = 0; qx < padded.x.positions; qx += V::kWidth) {
      const int lanes = static_cast<int>(std::min<int64_t>(V::kWidth, padded.x.positions - qx));
      const V g = load_masked<T, kMasked>(gradient, row + qx, lanes);
      for (int t = 0; t < kTaps; ++t) {
        sum[t] = V::fma(g, V::load(from + offsets[t] + qx, lanes), sum[t]);
      }
    }
  }
  for (int t = 0; t < kTaps; ++t) sums[t] += sum[t].sum();
}

template <bool kMasked, class T>
void depthwise_weight_planar(const Images<T>& x, const Images<T>& gradient, int64_t batch,
                             T* grad_weight) {
  using Acc = acc_t<T>;
  const PaddedPlane<T> padded(x);
  const int64_t taps = padded.taps(), channels = x.channels;
  const int64_t plane = x.y.size * x.x.size, positions = x.positions_per_image();
  parallel_for(0, channels, 1, [&](int64_t begin, int64_t end) {
    Scratch<Acc> image(padded.size()), sums(taps);
    Scratch<int64_t> offsets(taps);
    for (int64_t t = 0; t < taps; ++t) offsets[t] = padded.tap_offset(t);
    for (int64_t channel = begin; channel < end; ++channel) {
      std::fill(sums.get(), sums.get() + taps, Acc{0});
      for (int64_t n = 0; n < batch; ++n) {
        const int64_t at = n * channels + channel;
        padded.template fill<false>(x, at * plane, image.get());
        int64_t t = 0;
        for (; t + 9 <= taps; t += 9) {
          depthwise_weight_taps<9, kMasked>(padded, image.get(), gradient, at * positions,
                                            offsets.get() + t, sums.get() + t);
        }
        for (; t < taps; ++t) {
          depthwise_weight_taps<1, kMasked>(padded, image.get(), gradient, at * positions,
                                            offsets.get() + t, sums.get() + t);
        }
      }
      for (int64_t t = 0; t < taps; ++t) {
        grad_weight[channel * taps + t] = static_cast<T>(sums[t]);
      }
    }
  });
}

// Σ over one row of positions of g · x at tap kx, for one vector of channels.
template <bool kMasked, class T>
Vec<acc_t<T>> depthwise_weight_row(const Images<T>& x, const Images<T>& gradient, int64_t x_row,
                                   int64_t g_row, int64_t kx, int lanes) {
  using V = Vec<acc_t<T>>;
  constexpr int kSums = 4;  // products that are under way at a time
  const auto [begin, end] = positions_inside(x.x, kx);
  V sums[kSums];
  for (V& s : sums) s = V::zero();
  const auto add = [&](int64_t q, V& sum) {
    sum = V::fma(load_masked<T, kMasked>(gradient, g_row + q * x.channels, lanes),
                 load_masked<T, false>(x, x_row + x.x.at(q, kx) * x.channels, lanes), sum);
  };
  int64_t q = begin;
  for (; q + kSums <= end; q += kSums) {
#pragma GCC unroll 4
    for (int k = 0; k < kSums; ++k) add(q + k, sums[k]);
  }
  for (; q < end; ++q) add(q, sums[0]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <bool kMasked, class T>
void depthwise_weight_pixel(const Images<T>& x, const Images<T>& gradient, int64_t batch,
                            T* grad_weight) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  const int64_t taps = x.y.taps * x.x.taps, channels = x.channels;
  parallel_for(0, ceil_div(channels, V::kWidth), 1, [&](int64_t begin, int64_t end) {
    Scratch<Acc> sums(taps * V::kWidth);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t c = block * V::kWidth;
      const int lanes = static_cast<int>(std::min<int64_t>(V::kWidth, channels - c));
      std::fill(sums.get(), sums.get() + taps * V::kWidth, Acc{0});
      for (int64_t row = 0; row < batch * x.y.positions; ++row) {
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t iy = x.y.at(row % x.y.positions, t / x.x.taps);
          if (iy < 0 || iy >= x.y.size) continue;
          const int64_t x_row = (row / x.y.positions * x.y.size + iy) * x.x.size * channels + c;
          const V sum = depthwise_weight_row<kMasked>(
              x, gradient, x_row, row * x.x.positions * channels + c, t % x.x.taps, lanes);
          (V::load(sums.get() + t * V::kWidth) + sum).store(sums.get() + t * V::kWidth);
        }
      }
      for (int lane = 0; lane < lanes; ++lane) {
        for (int64_t t = 0; t < taps; ++t) {
          grad_weight[(c + lane) * taps + t] = static_cast<T>(sums[t * V::kWidth + lane]);
        }
      }
    }
  });
}

template <bool kMasked, class T>
void depthwise_weight(bool channels_last, const Images<T>& x, const Images<T>& gradient,
                      int64_t batch, T* grad_weight) {
  channels_last ? depthwise_weight_pixel<kMasked>(x, gradient, batch, grad_weight)
                : depthwise_weight_planar<kMasked>(x, gradient, batch, grad_weight);
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
