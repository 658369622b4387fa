// Depthwise convolutions of images with channels last: vectors run along the channels, the images
// are read in place and in the order in which they lie.
#pragma once

#include "conv2d/patches_simd.h"
#include "conv2d/weights_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Sums of some positions by some vectors of channels are in registers, as many as hide the latency
// of a product. `weight` has the channels side by side.
template <class T>
class DepthwisePixels {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  static constexpr int kPositions = 4, kVectors = 2;

 public:
  DepthwisePixels(const Correlation<T>& correlation, const Acc* taps)
      : c_(correlation), weight_(taps), sink_{c_.result, c_.map, c_.epilogue} {}

  // Row qy of the positions of image n.
  void run(int64_t n, int64_t qy) const {
    const Axis& x = c_.images.x;
    if (x.taps == 3 && x.dilation == 1 && x.stride <= 2 && x.positions >= kPositions) {
      return x.stride == 1 ? run_columns<1>(n, qy) : run_columns<2>(n, qy);
    }
    const int64_t whole = positions_inside(x, 0).begin;
    const int64_t edge = std::max(whole, positions_inside(x, x.taps - 1).end);
    int64_t q = 0;
    for (; q < whole; ++q) run_taps<1>(place(n, qy, q), taps_inside(x, q));
    for (; q + kPositions <= edge; q += kPositions) {
      run_taps<kPositions>(place(n, qy, q), {0, x.taps});
    }
    for (; q < x.positions; ++q) run_taps<1>(place(n, qy, q), taps_inside(x, q));
  }

 private:
  // Positions from q on of row qy.
  struct Place {
    int64_t n, qy, q;
    T* out;
  };
  Place place(int64_t n, int64_t qy, int64_t q) const {
    const int64_t row = n * c_.images.y.positions + qy;
    return {n, qy, q, c_.result + c_.map.offset(row * c_.images.x.positions + q)};
  }

  // The pixel that tap (ky, 0) of the position meets, or would if it were in the image.
  int64_t pixel(const Place& at, int64_t ky) const {
    const Axis &y = c_.images.y, &x = c_.images.x;
    return (at.n * y.size + y.at(at.qy, ky)) * x.size + x.at(at.q, 0);
  }
  template <class Lanes>
  V tap(int64_t ky, int64_t kx, int64_t channel, Lanes lanes) const {
    return load(weight_ + (ky * c_.images.x.taps + kx) * c_.channels + channel, lanes);
  }

  // f(first channel, vectors, lanes of each) for all channels.
  template <class F>
  void for_channels(const F& f) const {
    constexpr std::integral_constant<int, V::kWidth> kWhole;
    constexpr std::integral_constant<int, kVectors> kMany;
    constexpr std::integral_constant<int, 1> kOne;
    int64_t channel = 0;
    for (; channel + kMany * kWhole <= c_.channels; channel += kMany * kWhole) {
      f(channel, kMany, kWhole);
    }
    for (; channel + kWhole <= c_.channels; channel += kWhole) f(channel, kOne, kWhole);
    const int rest = static_cast<int>(c_.channels - channel);
    if (rest > 0) f(channel, kOne, rest);
  }

  // Columns kx of the kernel that lie in the image for all of kCount positions.
  template <int kCount>
  void run_taps(const Place& at, const Inside& kx) const {
    const Axis &y = c_.images.y, &x = c_.images.x;
    const Inside ky = taps_inside(y, at.qy);
    for_channels([&]<int kWide>(int64_t channel, std::integral_constant<int, kWide>, auto lanes) {
      V sums[kCount][kWide];
      clear(sums);
      for (int64_t j = ky.begin; j < ky.end; ++j) {
        const int64_t line = pixel(at, j);
        for (int64_t i = kx.begin; i < kx.end; ++i) {
          const int64_t from = (line + i * x.dilation) * c_.channels + channel;
#pragma GCC unroll 2
          for (int v = 0; v < kWide; ++v) {
            const V w = tap(j, i, channel + v * V::kWidth, lanes);
#pragma GCC unroll 4
            for (int k = 0; k < kCount; ++k) {
              const int64_t offset = from + k * x.stride * c_.channels + v * V::kWidth;
              sums[k][v] = V::fma(w, load(c_.images.data + offset, lanes), sums[k][v]);
            }
          }
        }
      }
      finish(sums, at, channel, lanes);
    });
  }

  // Three columns of the kernel: a pixel is read once for all positions that meet it, and one
  // beyond the image not at all.
  template <int kStride>
  void run_columns(int64_t n, int64_t qy) const {
    const int64_t positions = c_.images.x.positions;
    for (int64_t q = 0; q < positions; q += kPositions) {
      // The last ones reach back over those before.
      sum_columns<kStride>(place(n, qy, std::min(q, positions - kPositions)));
    }
  }

  template <int kStride>
  void sum_columns(const Place& at) const {
    constexpr int kColumns = (kPositions - 1) * kStride + 3;
    const Axis& x = c_.images.x;
    const Inside ky = taps_inside(c_.images.y, at.qy);
    const int64_t first = std::max<int64_t>(0, -x.at(at.q, 0)), end = x.size - x.at(at.q, 0);
    for_channels([&]<int kWide>(int64_t channel, std::integral_constant<int, kWide>, auto lanes) {
      V sums[kPositions][kWide];
      clear(sums);
      for (int64_t j = ky.begin; j < ky.end; ++j) {
        const int64_t line = pixel(at, j);
        V taps[3][kWide];
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) {
#pragma GCC unroll 2
          for (int v = 0; v < kWide; ++v) taps[i][v] = tap(j, i, channel + v * V::kWidth, lanes);
        }
#pragma GCC unroll 9
        for (int column = 0; column < kColumns; ++column) {
          if (column < first || column >= end) continue;
#pragma GCC unroll 2
          for (int v = 0; v < kWide; ++v) {
            const int64_t offset = (line + column) * c_.channels + channel + v * V::kWidth;
            const V pixels = load(c_.images.data + offset, lanes);
#pragma GCC unroll 4
            for (int k = 0; k < kPositions; ++k) {
              const int i = column - k * kStride;
              if (i >= 0 && i < 3) sums[k][v] = V::fma(taps[i][v], pixels, sums[k][v]);
            }
          }
        }
      }
      finish(sums, at, channel, lanes);
    });
  }

  // What the row of positions below meets first. Rows lie too far apart for the processor to see
  // what comes next.
  void prefetch_below(const Place& at, int64_t count, int64_t channel) const {
    const Axis &y = c_.images.y, &x = c_.images.x;
    for (int64_t j = std::max<int64_t>(0, y.taps - y.stride); j < y.taps; ++j) {
      const int64_t line = pixel({at.n, at.qy + 1, at.q, nullptr}, j);
      for (int64_t i = 0; i < count * x.stride; ++i) {
        prefetch_to_read(c_.images.data + (line + i) * c_.channels + channel);
      }
    }
  }

  template <int kCount, int kWide>
  static void clear(V (&sums)[kCount][kWide]) {
#pragma GCC unroll 4
    for (auto& of_position : sums) {
#pragma GCC unroll 2
      for (V& s : of_position) s = V::zero();
    }
  }

  template <int kCount, int kWide, class Lanes>
  [[gnu::always_inline]] void finish(const V (&sums)[kCount][kWide], const Place& at,
                                     int64_t channel, Lanes lanes) const {
    V bias[kWide];
    for (int v = 0; v < kWide; ++v) bias[v] = sink_.bias(channel + v * V::kWidth, lanes);
    prefetch_below(at, kCount, channel);
#pragma GCC unroll 4
    for (int k = 0; k < kCount; ++k) {
      T* to = at.out + k * c_.map.col_stride + channel;
      prefetch_to_write(to + kCount * c_.map.col_stride);
#pragma GCC unroll 2
      for (int v = 0; v < kWide; ++v) sink_.put(sums[k][v] + bias[v], to + v * V::kWidth, lanes);
    }
  }

  const Correlation<T>& c_;
  const Acc* weight_;
  PixelSink<T> sink_;
};

template <class T>
void depthwise_pixel(const Correlation<T>& c) {
  using Acc = acc_t<T>;
  const Axis& y = c.images.y;
  const int64_t taps = y.taps * c.images.x.taps;
  const T* rows = c.weights->matrix().data;
  Scratch<Acc> weight(taps * c.channels);
  for (int64_t i = 0; i < taps * c.channels; ++i) {
    weight[i % taps * c.channels + i / taps] = static_cast<Acc>(rows[i]);
  }
  const DepthwisePixels<T> pixels(c, weight.get());
  parallel_for(0, c.batch * y.positions, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) pixels.run(row / y.positions, row % y.positions);
  });
}

// Sums of the weight gradient of vectors [begin, end) of channels, a row of positions at a time, in
// the order of images and rows, so that they do not depend on how the channels were shared out.
template <class T>
class DepthwisePixelWeights {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;

 public:
  DepthwisePixelWeights(const Images<T>& images, const Images<T>& grad)
      : x_(images), gradient_(grad), taps_(x_.y.taps * x_.x.taps), columns_(x_.x.taps) {
    for (int64_t i = 0; i < x_.x.taps; ++i) columns_[i] = positions_inside(x_.x, i);
  }

  // Sums are (vectors, taps, channels), from vector `begin` on.
  int64_t size(int64_t vectors) const { return vectors * taps_ * V::kWidth; }
  void add(int64_t batch, int64_t begin, int64_t end, Acc* sums) const {
    constexpr int kV = V::kWidth;
    for (int64_t row = 0; row < batch * x_.y.positions; ++row) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t c = block * kV;
        Acc* to = sums + size(block - begin);
        c + kV <= x_.channels ? add_row<true>(row, c, kV, to)
                              : add_row<false>(row, c, static_cast<int>(x_.channels - c), to);
      }
    }
  }

  // Of `channels`, whose weights begin at `to`.
  template <class To>
  void write(const Acc* sums, int64_t channels, To* to) const {
    for (int64_t c = 0; c < channels; ++c, to += taps_) {
      const Acc* of_channel = sums + size(c / V::kWidth) + c % V::kWidth;
      for (int64_t t = 0; t < taps_; ++t) to[t] = static_cast<To>(of_channel[t * V::kWidth]);
    }
  }

 private:
  template <bool kWhole>
  void add_row(int64_t row, int64_t c, int lanes, Acc* sums) const {
    const int64_t qy = row % x_.y.positions, first_line = row / x_.y.positions * x_.y.size;
    const Inside ky = taps_inside(x_.y, qy);
    const T* g = gradient_.data + row * x_.x.positions * x_.channels + c;
    const auto line = [&](int64_t j) { return (first_line + x_.y.at(qy, j)) * x_.x.size; };
    if (x_.x.taps == 3 && ky.end - ky.begin == 3) {
      const T* from = x_.data + line(ky.begin) * x_.channels + c;
      return add_taps<3, 3, kWhole>(from, g, 0, lanes, sums + ky.begin * 3 * V::kWidth);
    }
    for (int64_t j = ky.begin; j < ky.end; ++j) {
      for (int64_t i = 0; i < x_.x.taps; ++i) {
        const T* from = x_.data + line(j) * x_.channels + c;
        add_taps<1, 1, kWhole>(from, g, i, lanes, sums + (j * x_.x.taps + i) * V::kWidth);
      }
    }
  }

  // Taps first … first + kColumns - 1 of kRows rows of the kernel; `line` is the first row's image.
  template <int kRows, int kColumns, bool kWhole>
  void add_taps(const T* line, const T* g, int64_t first, int lanes, Acc* sums) const {
    const int64_t row_step = x_.y.dilation * x_.x.size * x_.channels;
    if constexpr (kWhole) lanes = V::kWidth;
    const auto product = [&](int64_t q, int row, int64_t tap, V sum) {
      const T* at = line + row * row_step + x_.x.at(q, tap) * x_.channels;
      return V::fma(V::load(g + q * x_.channels, lanes), V::load(at, lanes), sum);
    };
    const int64_t begin = columns_[first].begin;
    const int64_t end = std::max(begin, columns_[first + kColumns - 1].end);
    V sum[kRows][kColumns];
#pragma GCC unroll 3
    for (auto& of_row : sum) {
#pragma GCC unroll 3
      for (V& s : of_row) s = V::zero();
    }
    const T* last = line + (kRows - 1) * row_step;  // which is new to the caches
    const bool begins_line = reinterpret_cast<uintptr_t>(g) % 64 < V::kWidth * sizeof(T);
    for (int64_t q = begin; q < end; ++q) {
      if (begins_line) {
        prefetch_to_read(g + (q + kAhead) * x_.channels);
        prefetch_to_read(last + (x_.x.at(q, first) + kAhead) * x_.channels);
      }
#pragma GCC unroll 3
      for (int j = 0; j < kRows; ++j) {
#pragma GCC unroll 3
        for (int i = 0; i < kColumns; ++i) sum[j][i] = product(q, j, first + i, sum[j][i]);
      }
    }
    for (int j = 0; j < kRows; ++j) {
      for (int i = 0; i < kColumns; ++i) {
        const Inside own = columns_[first + i];
        for (int64_t q = own.begin; q < std::min(begin, own.end); ++q) {
          sum[j][i] = product(q, j, first + i, sum[j][i]);
        }
        for (int64_t q = std::max(end, own.begin); q < own.end; ++q) {
          sum[j][i] = product(q, j, first + i, sum[j][i]);
        }
        Acc* to = sums + (j * kColumns + i) * V::kWidth;
        (V::load(to) + sum[j][i]).store(to);
      }
    }
  }

  static constexpr int64_t kAhead = 16;  // pixels

  const Images<T>& x_;
  const Images<T>& gradient_;
  int64_t taps_;
  Scratch<Inside> columns_;  // positions whose tap is in the image, by columns of the kernel
};

template <class T>
void depthwise_weight_pixel(const Images<T>& x, const Images<T>& gradient, int64_t batch,
                            T* grad_weight) {
  constexpr int64_t kV = Vec<acc_t<T>>::kWidth;
  const DepthwisePixelWeights<T> weights(x, gradient);
  const int64_t taps = weights.size(1) / kV;
  parallel_for(0, ceil_div(x.channels, kV), 1, [&](int64_t begin, int64_t end) {
    const Scratch<acc_t<T>> sums(weights.size(end - begin));
    std::fill_n(sums.get(), weights.size(end - begin), acc_t<T>{0});
    weights.add(batch, begin, end, sums.get());
    weights.write(sums.get(), std::min(end * kV, x.channels) - begin * kV,
                  grad_weight + begin * kV * taps);
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
