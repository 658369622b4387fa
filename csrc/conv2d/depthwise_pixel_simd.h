// Depthwise convolutions of images with channels last: vectors run along the channels, the images
// are read in place and in the order in which they lie.
#pragma once

#include "conv2d/patches_simd.h"
#include "conv2d/weights_simd.h"
#include "core/lanes_simd.h"
#include "gemm/vector_engine.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Sums of some positions by some vectors of channels are in registers, as many as hide the latency
// of a product. What all of a row's positions share is looked up once: a block is some 80 products,
// and what it does besides would be as much.
//
// `taps` and `bias` have the channels side by side, as order_channels() puts them.
template <class T>
class DepthwisePixels {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  static constexpr int kPositions = 4, kVectors = 2;
  // Two vectors of bfloat16 are their even and their odd channels: a load and two operations, where
  // one after the other they are two and four.
  static constexpr bool kSplits = std::is_same_v<T, BFloat16>;

 public:
  DepthwisePixels(const Correlation<T>& correlation, const Acc* taps, const Acc* bias)
      : c_(correlation),
        taps_(taps),
        bias_(bias),
        least_(V::set1(Lines<Acc>::relu_floor(c_.epilogue.relu))) {}

  // ordered[i * channels + …] of row i of each channel; zeros if there are none.
  static void order_channels(const T* rows, int64_t channels, int64_t count, Acc* ordered) {
    constexpr int64_t kV = V::kWidth, kBlock = kVectors * kV;
    const int64_t split = kSplits ? channels / kBlock * kBlock : 0;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t to = c < split ? c / kBlock * kBlock + c % 2 * kV + c % kBlock / 2 : c;
      for (int64_t i = 0; i < count; ++i) {
        ordered[i * channels + to] =
            rows != nullptr ? static_cast<Acc>(rows[c * count + i]) : Acc{};
      }
    }
  }

  // Row qy of the positions of image n.
  void run(int64_t n, int64_t qy) const {
    const Axis& x = c_.images.x;
    const Row row = row_of(n, qy);
    if (x.taps == 3 && x.dilation == 1 && x.stride <= 2 && x.positions >= kPositions) {
      return x.stride == 1 ? run_columns<1>(row) : run_columns<2>(row);
    }
    const int64_t whole = positions_inside(x, 0).begin;
    const int64_t edge = std::max(whole, positions_inside(x, x.taps - 1).end);
    int64_t q = 0;
    for (; q < whole; ++q) run_taps<1>(row, q, taps_inside(x, q));
    for (; q + kPositions <= edge; q += kPositions) run_taps<kPositions>(row, q, {0, x.taps});
    for (; q < x.positions; ++q) run_taps<1>(row, q, taps_inside(x, q));
  }

 private:
  // The lines of the image that a row of positions meets, with their taps, and those that the row
  // below meets first.
  struct Row {
    const T *lines, *below;
    int64_t count, count_below;
    const Acc* taps;
    T* out;
  };
  Row row_of(int64_t n, int64_t qy) const {
    const Axis &y = c_.images.y, &x = c_.images.x;
    const Inside ky = taps_inside(y, qy);
    const int64_t met = std::max<int64_t>(0, y.taps - y.stride);
    const auto line = [&](int64_t row, int64_t tap) {
      return c_.images.data + (n * y.size + y.at(row, tap)) * x.size * c_.channels;
    };
    return {.lines = line(qy, ky.begin),
            .below = line(qy + 1, met),
            .count = ky.end - ky.begin,
            .count_below = y.taps - met,
            .taps = taps_ + ky.begin * x.taps * c_.channels,
            .out = c_.result + c_.map.offset((n * y.positions + qy) * x.positions)};
  }
  int64_t line_step() const { return c_.images.y.dilation * c_.images.x.size * c_.channels; }

  template <int kWide, class Lanes>
  static void load_pixel(const T* p, Lanes lanes, V (&pixel)[kWide]) {
    if constexpr (kSplits && kWide == 2) {
      const auto channels = load_split(p);
      pixel[0] = channels.first, pixel[1] = channels.second;
    } else {
#pragma GCC unroll 2
      for (int v = 0; v < kWide; ++v) pixel[v] = load(p + v * V::kWidth, lanes);
    }
  }

  // f(first channel, vectors, lanes of each) for all channels.
  template <class F>
  [[gnu::always_inline]] void for_channels(const F& f) const {
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
  void run_taps(const Row& row, int64_t q, const Inside& kx) const {
    const Axis& x = c_.images.x;
    const int64_t first = x.at(q, 0) * c_.channels;
    for_channels([&]<int kWide>(int64_t channel, std::integral_constant<int, kWide>, auto lanes) {
      V sums[kCount][kWide];
      clear(sums);
      for (int64_t j = 0; j < row.count; ++j) {
        const T* line = row.lines + j * line_step() + first + channel;
        const Acc* taps = row.taps + j * x.taps * c_.channels + channel;
        for (int64_t i = kx.begin; i < kx.end; ++i) {
          V tap[kWide];
#pragma GCC unroll 2
          for (int v = 0; v < kWide; ++v) {
            tap[v] = load(taps + i * c_.channels + v * V::kWidth, lanes);
          }
#pragma GCC unroll 4
          for (int k = 0; k < kCount; ++k) {
            V pixel[kWide];
            load_pixel(line + (i * x.dilation + k * x.stride) * c_.channels, lanes, pixel);
#pragma GCC unroll 2
            for (int v = 0; v < kWide; ++v) sums[k][v] = V::fma(tap[v], pixel[v], sums[k][v]);
          }
        }
      }
      finish(sums, row, q, channel, lanes);
    });
  }

  // Three columns of the kernel: a pixel is read once for all positions that meet it, and one
  // beyond the image not at all.
  template <int kStride>
  void run_columns(const Row& row) const {
    const Axis& x = c_.images.x;
    for (int64_t from = 0; from < x.positions; from += kPositions) {
      // The last ones reach back over those before.
      const int64_t q = std::min(from, x.positions - kPositions);
      const bool inside = x.at(q, 0) >= 0 && x.at(q + kPositions - 1, 2) < x.size;
      inside ? sum_columns<kStride, true>(row, q) : sum_columns<kStride, false>(row, q);
    }
  }

  template <int kStride, bool kInside>
  void sum_columns(const Row& row, int64_t q) const {
    constexpr int kColumns = (kPositions - 1) * kStride + 3;
    const int64_t at = c_.images.x.at(q, 0), pixel_step = c_.channels, lines_step = line_step();
    const int64_t begin = std::max<int64_t>(0, -at), end = c_.images.x.size - at;
    for_channels([&]<int kWide>(int64_t channel, std::integral_constant<int, kWide>,
                                auto lanes) __attribute__((always_inline)) {
      V sums[kPositions][kWide];
      clear(sums);
      const T* line = row.lines + at * pixel_step + channel;
      const Acc* taps = row.taps + channel;
      for (int64_t j = 0; j < row.count; ++j, line += lines_step, taps += 3 * pixel_step) {
        V tap[3][kWide];
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) {
#pragma GCC unroll 2
          for (int v = 0; v < kWide; ++v) {
            tap[i][v] = load(taps + i * pixel_step + v * V::kWidth, lanes);
          }
        }
#pragma GCC unroll 9
        for (int column = 0; column < kColumns; ++column) {
          if (!kInside && (column < begin || column >= end)) continue;
          V pixel[kWide];
          load_pixel(line + column * pixel_step, lanes, pixel);
#pragma GCC unroll 4
          for (int k = 0; k < kPositions; ++k) {
            const int i = column - k * kStride;
            if (i < 0 || i >= 3) continue;
#pragma GCC unroll 2
            for (int v = 0; v < kWide; ++v) sums[k][v] = V::fma(tap[i][v], pixel[v], sums[k][v]);
          }
        }
      }
      finish(sums, row, q, channel, lanes);
    });
  }

  // Rows lie too far apart for the processor to see what comes next.
  template <int kCount, int kWide, class Lanes>
  [[gnu::always_inline]] void finish(const V (&sums)[kCount][kWide], const Row& row, int64_t q,
                                     int64_t channel, Lanes lanes) const {
    const Axis& x = c_.images.x;
    const int64_t step = c_.map.col_stride;  // a store may change members for all GCC knows
    const T* below = row.below + x.at(q, 0) * c_.channels + channel;
    for (int64_t j = 0; j < row.count_below; ++j, below += line_step()) {
      for (int64_t i = 0; i < kCount * x.stride; ++i) prefetch_to_read(below + i * c_.channels);
    }
    V bias[kWide];
#pragma GCC unroll 2
    for (int v = 0; v < kWide; ++v) bias[v] = load(bias_ + channel + v * V::kWidth, lanes);
    const V least = least_;
    T* to = row.out + q * step + channel;
#pragma GCC unroll 4
    for (int k = 0; k < kCount; ++k, to += step) {
      prefetch_to_write(to + kCount * step);
      V y[kWide];
#pragma GCC unroll 2
      for (int v = 0; v < kWide; ++v) y[v] = V::max(least, sums[k][v] + bias[v]);
      if constexpr (kSplits && kWide == 2) {
        store_split({y[0], y[1]}, to);
      } else {
#pragma GCC unroll 2
        for (int v = 0; v < kWide; ++v) store(y[v], to + v * V::kWidth, lanes);
      }
    }
  }

  const Correlation<T>& c_;
  const Acc *taps_, *bias_;
  const V least_;
};

template <class T>
void depthwise_pixel(const Correlation<T>& c) {
  using Acc = acc_t<T>;
  using Kernel = DepthwisePixels<T>;
  const Axis& y = c.images.y;
  const int64_t taps = y.taps * c.images.x.taps;
  const Scratch<Acc> weight(taps * c.channels), bias(c.channels);
  Kernel::order_channels(c.weights->matrix().data, c.channels, taps, weight.get());
  Kernel::order_channels(c.epilogue.bias, c.channels, 1, bias.get());
  const Kernel pixels(c, weight.get(), bias.get());
  parallel_for(0, c.batch * y.positions, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) pixels.run(row / y.positions, row % y.positions);
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
