// Depthwise convolutions of planes by groups of channels. A row of 7 or 14 numbers fills no
// register, and windows of many taps load a row at as many places, while the planes of some
// channels, transposed, are pixels that fill registers and that the kernel of images with channels
// last loads once for all taps. Its results are transposed back.
#pragma once

#include <utility>

#include "conv2d/depthwise_pixel_simd.h"
#include "conv2d/depthwise_pixel_weight_simd.h"
#include "conv2d/grid_simd.h"
#include "conv2d/pixels_simd.h"
#include "core/lanes_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Channels of a group.
inline constexpr int64_t kGroupChannels = 2 * Vec<float>::kWidth;

// Of `channels` planes: planes[c * plane + i] = pixels[i * kGroupChannels + c], what copy_pixels()
// made.
template <class T>
void pixels_to_planes(const float* pixels, int64_t plane, int64_t channels, int64_t count,
                      T* planes) {
  using V = Vec<float>;
  constexpr int64_t kV = V::kWidth;
  for (int64_t c = 0; c < channels; c += kV, planes += kV * plane, pixels += kV) {
    for (int64_t i = 0; i < count; i += kV) {
      const int n = static_cast<int>(std::min(kV, count - i));
      V block[kV];
      for (int64_t r = 0; r < kV; ++r) block[r] = V::load(pixels + (i + r) * kGroupChannels);
      transpose(block);
      for (int64_t k = 0; k < std::min(kV, channels - c); ++k) {
        store(block[k], planes + k * plane + i, n);
      }
    }
  }
}

// Transposing costs an element two operations each way, and saves what is idle of a register: less
// than that where the kernels of planes have their quickest way and rows fill registers.
template <class T>
bool is_small_plane(const Images<T>& images) {
  constexpr int64_t kMostPixels = 28 * 28, kV = Vec<float>::kWidth;
  const Axis &y = images.y, &x = images.x;
  const bool square = y.taps == 3 && x.taps == 3 && y.dilation == 1 && x.stride == 1;
  return images.channels >= kV && y.size * x.size <= kMostPixels && (!square || x.positions < kV);
}

// Forward and input gradient.
template <class T>
class DepthwiseGroups {
  using V = Vec<float>;
  static constexpr int64_t kGroup = kGroupChannels, kSlack = V::kWidth;
  // Of a band's pixels and its results, beside each other in L2.
  static constexpr int64_t kBandBytes = 256 << 10;

 public:
  static bool pays(const Correlation<T>& c) {
    const bool dense = c.map.col_stride == 1 && c.map.cols >= c.images.positions_per_image();
    return !c.channels_last && dense && (is_small_plane(c.images) || gathers_wide_windows(c));
  }

  explicit DepthwiseGroups(const Correlation<T>& correlation)
      : c_(correlation),
        weights_(c_.weights->matrix().data),  // which may only now be put in order
        y_(c_.images.y),
        x_(c_.images.x),
        taps_(y_.taps * x_.taps),
        groups_(ceil_div(c_.channels, kGroup)),
        bands_(cut_rows(y_.positions, groups_ * c_.batch, kBandBytes,
                        [&](int64_t rows) { return bytes_of_band(c_.images, rows); })) {}

  void run() const {
    const int64_t pixels = most_met(y_, bands_.rows) * x_.size;
    const int64_t results = bands_.rows * x_.positions + kSlack;
    parallel_for(0, groups_ * c_.batch * bands_.count, 1, [&](int64_t begin, int64_t end) {
      const Scratch<float> weight(taps_ * kGroup), bias(kGroup), in(pixels * kGroup),
          out(results * kGroup);
      Correlation<float> band = of_pixels(in.get(), out.get());
      const DepthwisePixels<float> kernel(band, weight.get(), bias.get());
      int64_t group = -1;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / bands_.count % c_.batch, row = task % bands_.count * bands_.rows;
        const int64_t last = std::exchange(group, task / bands_.count / c_.batch);
        if (group != last) take_weights(group, weight.get(), bias.get());
        Axis& y = band.images.y;
        y = fill(group, n, row, in.get());
        for (int64_t qy = 0; qy < y.positions; ++qy) kernel.run(0, qy);
        pixels_to_planes(out.get(), c_.channel_stride, channels_of(group),
                         y.positions * x_.positions,
                         c_.result + c_.map.offset((n * y_.positions + row) * x_.positions) +
                             group * kGroup * c_.channel_stride);
      }
    });
  }

 private:
  // Whose bands fit, be they of a single row.
  static bool gathers_wide_windows(const Correlation<T>& c) {
    return c.channels >= V::kWidth && has_wide_windows(c.images) &&
           bytes_of_band(c.images, 1) <= 4 * kBandBytes;
  }
  // Rows of an image that so many rows of positions meet.
  static int64_t most_met(const Axis& y, int64_t rows) {
    return std::min(y.size, (rows - 1) * y.stride + (y.taps - 1) * y.dilation + 1);
  }
  static int64_t bytes_of_band(const Images<T>& images, int64_t rows) {
    const int64_t pixels = most_met(images.y, rows) * images.x.size + rows * images.x.positions;
    return pixels * kGroup * static_cast<int64_t>(sizeof(float));
  }

  // A group's pixels as an image of their own.
  Correlation<float> of_pixels(const float* in, float* out) const {
    Correlation<float> c{};
    c.channels_last = c.depthwise = true;
    c.images = {in, nullptr, kGroup, kGroup, y_, x_};
    c.batch = 1;
    c.channels = kGroup;
    c.result = out;
    c.map = dense_map(true, 1, c_.images.positions_per_image(), kGroup);
    c.epilogue = {nullptr, c_.epilogue.relu};
    return c;
  }

  int64_t channels_of(int64_t group) const {
    return std::min(kGroup, c_.channels - group * kGroup);
  }

  void take_weights(int64_t group, float* weight, float* bias) const {
    const T* from = weights_ + group * kGroup * taps_;
    for (int64_t k = 0; k < kGroup; ++k) {
      for (int64_t t = 0; t < taps_; ++t) {
        const bool some = k < channels_of(group);
        weight[t * kGroup + k] = some ? static_cast<float>(from[k * taps_ + t]) : 0.0f;
      }
      const bool some = c_.epilogue.bias != nullptr && k < channels_of(group);
      bias[k] = some ? static_cast<float>(c_.epilogue.bias[group * kGroup + k]) : 0.0f;
    }
  }

  // A group's pixels that the band from `row` on meets, and the axis over their rows.
  Axis fill(int64_t group, int64_t n, int64_t row, float* in) const {
    Axis y = row_band(c_.images, row, std::min(bands_.rows, y_.positions - row)).y;
    const int64_t first = std::clamp<int64_t>(y.at(0, 0), 0, y.size);
    y.size = std::clamp(y.at(y.positions - 1, y.taps - 1) + 1, first, y.size) - first;
    y.origin -= first;
    const int64_t plane = n * c_.images.total_channels + group * kGroup;
    const int64_t at = (plane * y_.size + first) * x_.size;
    copy_pixels<false>(c_.images, false, at, y.size * x_.size, channels_of(group), in, kGroup,
                       kGroup);
    return y;
  }

  const Correlation<T>& c_;
  const T* const weights_;  // (channel, tap)
  const Axis y_, x_;
  const int64_t taps_, groups_;
  const RowBands bands_;
};

// The weight gradient of a group, images in their order.
template <class T>
void depthwise_weight_groups(const Images<T>& x, const Images<T>& gradient, int64_t batch,
                             T* grad_weight) {
  constexpr int64_t kGroup = kGroupChannels;
  const int64_t taps = x.y.taps * x.x.taps, positions = x.positions_per_image();
  const int64_t plane = x.y.size * x.x.size;
  Images<T> pixels_of_gradient = gradient;  // whose axes are the windows' in x
  pixels_of_gradient.y.size = x.y.positions;
  pixels_of_gradient.x.size = x.x.positions;
  parallel_for(0, ceil_div(x.channels, kGroup), 1, [&](int64_t begin, int64_t end) {
    const Scratch<float> x_pixels(plane * kGroup), gradients(positions * kGroup);
    const Images<float> from{x_pixels.get(), nullptr, kGroup, kGroup, x.y, x.x};
    const Images<float> to{gradients.get(), nullptr, kGroup, kGroup, gradient.y, gradient.x};
    const DepthwisePixelWeights<float> weights(from, to);
    const Scratch<float> sums(weights.size(2));
    for (int64_t first = begin * kGroup; first < std::min(end * kGroup, x.channels);
         first += kGroup) {
      const int64_t channels = std::min(kGroup, x.channels - first);
      std::fill_n(sums.get(), weights.size(2), 0.0f);
      for (int64_t n = 0; n < batch; ++n) {
        const int64_t at = n * x.channels + first;
        copy_pixels<false>(x, false, at * plane, plane, channels, x_pixels.get(), kGroup, kGroup);
        copy_pixels<false>(pixels_of_gradient, false, at * positions, positions, channels,
                           gradients.get(), kGroup, kGroup);
        weights.add(1, 0, 2, sums.get());
      }
      weights.write(sums.get(), channels, grad_weight + first * taps);
    }
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
