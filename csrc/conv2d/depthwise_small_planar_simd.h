// Depthwise convolutions of small planes. A row of 7 or 14 numbers fills no register, while the
// planes of some channels, transposed, are pixels that do: those the kernel of images with channels
// last takes, and its results are transposed back.
#pragma once

#include "conv2d/depthwise_pixel_simd.h"
#include "conv2d/depthwise_pixel_weight_simd.h"
#include "conv2d/pixels_simd.h"
#include "core/lanes_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Channels that are transposed at a time.
inline constexpr int64_t kPlaneGroup = 2 * Vec<float>::kWidth;

// Of `channels` planes: planes[c * plane + i] = pixels[i * kPlaneGroup + c], what copy_pixels()
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
      for (int64_t r = 0; r < kV; ++r) block[r] = V::load(pixels + (i + r) * kPlaneGroup);
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
class DepthwiseSmallPlanes {
  static constexpr int64_t kGroup = kPlaneGroup, kSlack = Vec<float>::kWidth;

 public:
  static bool pays(const Correlation<T>& c) {
    const bool dense = c.map.col_stride == 1 && c.map.cols >= c.images.positions_per_image();
    return dense && is_small_plane(c.images);
  }

  explicit DepthwiseSmallPlanes(const Correlation<T>& correlation)
      : c_(correlation),
        weights_(c_.weights->matrix().data),  // which may only now be put in order
        y_(c_.images.y),
        plane_(y_.size * c_.images.x.size),
        first_row_(std::clamp<int64_t>(y_.at(0, 0), 0, y_.size)),
        taps_(y_.taps * c_.images.x.taps) {
    const int64_t end = y_.at(y_.positions - 1, y_.taps - 1) + 1;
    y_.size = std::clamp<int64_t>(end, first_row_, y_.size) - first_row_;
    y_.origin -= first_row_;
  }

  void run() const {
    const int64_t groups = ceil_div(c_.channels, kGroup), pixels = y_.size * c_.images.x.size;
    const int64_t positions = c_.images.positions_per_image();
    parallel_for(0, groups * c_.batch, 1, [&](int64_t begin, int64_t end) {
      const Scratch<float> weight(taps_ * kGroup), bias(kGroup), in(pixels * kGroup),
          out((positions + kSlack) * kGroup);
      const Correlation<float> c = group(in.get(), out.get());
      const DepthwisePixels<float> kernel(c, weight.get(), bias.get());
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task % c_.batch, first = task / c_.batch * kGroup;
        const int64_t channels = std::min(kGroup, c_.channels - first);
        if (task == begin || n == 0) take_weights(first, channels, weight.get(), bias.get());
        const int64_t image = n * c_.images.total_channels + first;
        const int64_t at = image * plane_ + first_row_ * c_.images.x.size;
        copy_pixels<false>(c_.images, false, at, pixels, channels, in.get(), kGroup, kGroup);
        for (int64_t qy = 0; qy < y_.positions; ++qy) kernel.run(0, qy);
        pixels_to_planes(out.get(), c_.channel_stride, channels, positions,
                         c_.result + c_.map.offset(n * positions) + first * c_.channel_stride);
      }
    });
  }

 private:
  // A group's pixels as an image of their own.
  Correlation<float> group(const float* in, float* out) const {
    Correlation<float> c{};
    c.channels_last = c.depthwise = true;
    c.images = {in, nullptr, kGroup, kGroup, y_, c_.images.x};
    c.batch = 1;
    c.channels = kGroup;
    c.result = out;
    c.map = dense_map(true, 1, c_.images.positions_per_image(), kGroup);
    c.epilogue = {nullptr, c_.epilogue.relu};
    return c;
  }

  void take_weights(int64_t first, int64_t channels, float* weight, float* bias) const {
    const T* from = weights_ + first * taps_;
    for (int64_t k = 0; k < kGroup; ++k) {
      for (int64_t t = 0; t < taps_; ++t) {
        weight[t * kGroup + k] = k < channels ? static_cast<float>(from[k * taps_ + t]) : 0.0f;
      }
      const bool some = c_.epilogue.bias != nullptr && k < channels;
      bias[k] = some ? static_cast<float>(c_.epilogue.bias[first + k]) : 0.0f;
    }
  }

  const Correlation<T>& c_;
  const T* const weights_;  // (channel, tap)
  Axis y_;                  // over the rows that are met
  const int64_t plane_, first_row_, taps_;
};

// The weight gradient of a group, images in their order.
template <class T>
void depthwise_weight_small_planar(const Images<T>& x, const Images<T>& gradient, int64_t batch,
                                   T* grad_weight) {
  constexpr int64_t kGroup = kPlaneGroup;
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
