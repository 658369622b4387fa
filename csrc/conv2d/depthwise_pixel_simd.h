// Depthwise convolutions of images with channels last: vectors run along the channels, the images
// are read in place and in the order in which they lie.
#pragma once

#include "conv2d/patches_simd.h"
#include "conv2d/weights_simd.h"
#include "core/lanes_simd.h"
#include "gemm/vector_engine.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Whose taps of all channels would fill L1 for every few positions.
template <class T>
bool has_wide_windows(const Images<T>& images) {
  constexpr int64_t kFewTaps = 9;
  return images.y.taps * images.x.taps > kFewTaps;
}

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
        sums_(sums_for(c_.images.x)),
        at_once_(has_wide_windows(c_.images) ? kVectors * V::kWidth : c_.channels),
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
    Row row = row_of(n, qy);
    for (; row.begin < c_.channels; row.begin = row.end) {
      row.end = std::min(c_.channels, row.begin + at_once_);
      run_channels(row);
    }
  }

 private:
  // The lines of the image that a row of positions meets, with their taps, and those that the row
  // below meets first; of these channels.
  struct Row {
    const T *lines, *below;
    int64_t count, count_below;
    const Acc* taps;
    T* out;
    int64_t begin, end;
  };
  void run_channels(const Row& row) const {
    const Axis& x = c_.images.x;
    if (x.positions < kPositions) {
      for (int64_t q = 0; q < x.positions; ++q) sum_taps<1, false>(row, q);
      return;
    }
    for (int64_t from = 0; from < x.positions; from += kPositions) {
      // The last ones reach back over those before.
      const int64_t q = std::min(from, x.positions - kPositions);
      const bool inside = x.at(q, 0) >= 0 && x.at(q + kPositions - 1, x.taps - 1) < x.size;
      (this->*(inside ? sums_.inside : sums_.across))(row, q);
    }
  }
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
            .out = c_.result + c_.map.offset((n * y.positions + qy) * x.positions),
            .begin = 0,
            .end = 0};
  }
  // Sums of kPositions from q on, all of whose taps are in the image, or not all.
  struct Sums {
    void (DepthwisePixels::*inside)(const Row&, int64_t q) const;
    void (DepthwisePixels::*across)(const Row&, int64_t q) const;
  };
  static Sums sums_for(const Axis& x) {
    Sums sums{&DepthwisePixels::sum_taps<kPositions, true>,
              &DepthwisePixels::sum_taps<kPositions, false>};
    const auto columns = [&]<int kTaps, int kStride>() {
      if (x.taps != kTaps || x.stride != kStride || x.dilation != 1) return;
      sums = {&DepthwisePixels::sum_columns<kTaps, kStride, true>,
              &DepthwisePixels::sum_columns<kTaps, kStride, false>};
    };
    columns.template operator()<3, 1>(), columns.template operator()<3, 2>();
    columns.template operator()<5, 1>(), columns.template operator()<5, 2>();
    columns.template operator()<7, 1>(), columns.template operator()<7, 2>();
    return sums;
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

  // f(first channel, vectors, lanes of each) for the channels of a row.
  template <class F>
  [[gnu::always_inline]] static void for_channels(const Row& row, const F& f) {
    constexpr std::integral_constant<int, V::kWidth> kWhole;
    constexpr std::integral_constant<int, kVectors> kMany;
    constexpr std::integral_constant<int, 1> kOne;
    int64_t channel = row.begin;
    for (; channel + kMany * kWhole <= row.end; channel += kMany * kWhole) {
      f(channel, kMany, kWhole);
    }
    for (; channel + kWhole <= row.end; channel += kWhole) f(channel, kOne, kWhole);
    const int rest = static_cast<int>(row.end - channel);
    if (rest > 0) f(channel, kOne, rest);
  }

  // Any taps.
  template <int kCount, bool kInside>
  void sum_taps(const Row& row, int64_t q) const {
    const Axis& x = c_.images.x;
    const int64_t at = x.at(q, 0);
    for_channels(row,
                 [&]<int kWide>(int64_t channel, std::integral_constant<int, kWide>, auto lanes) {
                   V sums[kCount][kWide];
                   clear(sums);
                   const T* line = row.lines + at * c_.channels + channel;
                   const Acc* taps = row.taps + channel;
                   for (int64_t j = 0; j < row.count; ++j, line += line_step()) {
                     for (int64_t i = 0; i < x.taps; ++i, taps += c_.channels) {
                       V tap[kWide];
#pragma GCC unroll 2
                       for (int v = 0; v < kWide; ++v) tap[v] = load(taps + v * V::kWidth, lanes);
#pragma GCC unroll 4
                       for (int k = 0; k < kCount; ++k) {
                         const int64_t column = i * x.dilation + k * x.stride;
                         if (!kInside && (at + column < 0 || at + column >= x.size)) continue;
                         V pixel[kWide];
                         load_pixel(line + column * c_.channels, lanes, pixel);
#pragma GCC unroll 2
                         for (int v = 0; v < kWide; ++v)
                           sums[k][v] = V::fma(tap[v], pixel[v], sums[k][v]);
                       }
                     }
                   }
                   finish(sums, row, q, channel, lanes);
                 });
  }

  // kTaps columns of the kernel side by side: a pixel is read once for all positions that meet it,
  // and one beyond the image not at all.
  template <int kTaps, int kStride, bool kInside>
  void sum_columns(const Row& row, int64_t q) const {
    constexpr int kColumns = (kPositions - 1) * kStride + kTaps;
    const int64_t at = c_.images.x.at(q, 0), pixel_step = c_.channels, lines_step = line_step();
    const int64_t begin = std::max<int64_t>(0, -at), end = c_.images.x.size - at;
    for_channels(row, [&]<int kWide>(int64_t channel, std::integral_constant<int, kWide>,
                                     auto lanes) __attribute__((always_inline)) {
      V sums[kPositions][kWide];
      clear(sums);
      const T* line = row.lines + at * pixel_step + channel;
      const Acc* taps = row.taps + channel;
      for (int64_t j = 0; j < row.count; ++j, line += lines_step, taps += kTaps * pixel_step) {
        V tap[kTaps][kWide];
#pragma GCC unroll 7
        for (int i = 0; i < kTaps; ++i) {
#pragma GCC unroll 2
          for (int v = 0; v < kWide; ++v) {
            tap[i][v] = load(taps + i * pixel_step + v * V::kWidth, lanes);
          }
        }
#pragma GCC unroll 13
        for (int column = 0; column < kColumns; ++column) {
          if (!kInside && (column < begin || column >= end)) continue;
          V pixel[kWide];
          load_pixel(line + column * pixel_step, lanes, pixel);
#pragma GCC unroll 4
          for (int k = 0; k < kPositions; ++k) {
            const int i = column - k * kStride;
            if (i < 0 || i >= kTaps) continue;
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
  const Sums sums_;
  const int64_t at_once_;  // channels, of a row
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
