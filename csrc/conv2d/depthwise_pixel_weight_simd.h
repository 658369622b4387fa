// The weight gradient of a depthwise convolution among pixels (NHWC): vectors of channels, for
// which a position's gradient meets the image at every tap.
#pragma once

#include "conv2d/geometry_simd.h"
#include "gemm/vector_engine.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Sums of the weight gradient of vectors [begin, end) of channels, a row of positions at a time, in
// the order of images and rows, so that they do not depend on how the channels were shared out.
// Rows, images and the batch are summed one within the other: the error grows with a sum's length.
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
    const int64_t count = size(end - begin);
    const Scratch<Acc> image(count);
    for (int64_t n = 0; n < batch; ++n) {
      std::fill_n(image.get(), count, Acc{0});
      add_image(n, begin, end, image.get());
      for (int64_t i = 0; i < count; i += V::kWidth) {
        (V::load(sums + i) + V::load(image.get() + i)).store(sums + i);
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
  void add_image(int64_t n, int64_t begin, int64_t end, Acc* sums) const {
    for (int64_t row = n * x_.y.positions; row < (n + 1) * x_.y.positions; ++row) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t c = block * V::kWidth;
        Acc* to = sums + size(block - begin);
        c + V::kWidth <= x_.channels
            ? add_row<true>(row, c, V::kWidth, to)
            : add_row<false>(row, c, static_cast<int>(x_.channels - c), to);
      }
    }
  }

  template <bool kWhole>
  void add_row(int64_t row, int64_t c, int lanes, Acc* sums) const {
    const int64_t qy = row % x_.y.positions, first_line = row / x_.y.positions * x_.y.size;
    const Inside ky = taps_inside(x_.y, qy);
    const int64_t rows = ky.end - ky.begin;
    const T* g = gradient_.data + row * x_.x.positions * x_.channels + c;
    const auto line = [&](int64_t j) { return (first_line + x_.y.at(qy, j)) * x_.x.size; };
    const Axis& x = x_.x;
    if (x.taps == 3 && x.dilation == 1 && x.stride <= 2 && rows > 0 && rows <= 3) {
      const T* from = x_.data + line(ky.begin) * x_.channels + c;
      with_constant<3>(rows, [&]<int kRows>(std::integral_constant<int, kRows>) {
        Acc* to = sums + ky.begin * 3 * V::kWidth;
        x.stride == 1 ? slide<kRows, 1, kWhole>(from, g, lanes, to)
                      : slide<kRows, 2, kWhole>(from, g, lanes, to);
      });
      return;
    }
    for (int64_t j = ky.begin; j < ky.end; ++j) {
      for (int64_t i = 0; i < x_.x.taps; ++i) {
        const T* from = x_.data + line(j) * x_.channels + c;
        add_tap<kWhole>(from, g, i, lanes, sums + (j * x_.x.taps + i) * V::kWidth);
      }
    }
  }

  // Some rows of a kernel of three columns, which slide over the image: what positions share of it
  // is loaded, and widened, once. `line` is the first row's image.
  template <int kRows, int kStride, bool kWhole>
  void slide(const T* line, const T* g, int lanes, Acc* sums) const {
    constexpr bool kKeeps = V::kWidth * sizeof(Acc) == 64;  // with 32 registers
    if constexpr (kWhole) lanes = V::kWidth;
    const int64_t row_step = x_.y.dilation * x_.x.size * x_.channels;
    const auto load_at = [&](int j, int64_t column) {
      return V::load(line + j * row_step + column * x_.channels, lanes);
    };
    V sum[kRows][3], window[kRows][3];
#pragma GCC unroll 3
    for (int j = 0; j < kRows; ++j) {
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) sum[j][i] = window[j][i] = V::zero();
    }
    int64_t column = x_.x.origin;
    const auto fetch = [&](int i) __attribute__((always_inline)) {
      if (!kKeeps || column + i < 0 || column + i >= x_.x.size) return;
#pragma GCC unroll 3
      for (int j = 0; j < kRows; ++j) window[j][i] = load_at(j, column + i);
    };
#pragma GCC unroll 3
    for (int i = 0; i < 3 - kStride; ++i) fetch(i);
    const T* last = line + (kRows - 1) * row_step;  // which is new to the caches
    const bool begins_line = reinterpret_cast<uintptr_t>(g) % 64 < V::kWidth * sizeof(T);
    for (int64_t q = 0; q < x_.x.positions; ++q, column += kStride, g += x_.channels) {
      if (begins_line) {
        prefetch_to_read(g + kAhead * x_.channels);
        prefetch_to_read(last + (column + kAhead) * x_.channels);
      }
#pragma GCC unroll 3
      for (int i = 3 - kStride; i < 3; ++i) fetch(i);
      const V gradient = V::load(g, lanes);
      const auto add_column = [&](int i) __attribute__((always_inline)) {
#pragma GCC unroll 3
        for (int j = 0; j < kRows; ++j) {
          const V x = kKeeps ? window[j][i] : load_at(j, column + i);
          sum[j][i] = V::fma(gradient, x, sum[j][i]);
        }
      };
      if (q >= columns_[0].begin && q < columns_[2].end) {
        add_column(0), add_column(1), add_column(2);
      } else {
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) {
          if (q >= columns_[i].begin && q < columns_[i].end) add_column(i);
        }
      }
#pragma GCC unroll 3
      for (int j = 0; j < kRows; ++j) {
#pragma GCC unroll 3
        for (int i = 0; i < 3 - kStride; ++i) window[j][i] = window[j][i + kStride];
      }
    }
#pragma GCC unroll 3
    for (int j = 0; j < kRows; ++j) {
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i, sums += V::kWidth) (V::load(sums) + sum[j][i]).store(sums);
    }
  }

  // One tap of any kernel.
  template <bool kWhole>
  void add_tap(const T* line, const T* g, int64_t tap, int lanes, Acc* sums) const {
    if constexpr (kWhole) lanes = V::kWidth;
    V sum = V::zero();
    for (int64_t q = columns_[tap].begin; q < columns_[tap].end; ++q) {
      const T* at = line + x_.x.at(q, tap) * x_.channels;
      sum = V::fma(V::load(g + q * x_.channels, lanes), V::load(at, lanes), sum);
    }
    (V::load(sums) + sum).store(sums);
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
