// The weight gradient of planes as that of pixels. Products along positions take the channels of
// each side by side, as pixels have them, where planes would be transposed panel by panel for every
// tap.
#pragma once

#include "conv2d/pixels_simd.h"
#if defined(__AVX512BF16__)
#include "conv2d/pixel_image_bf16.h"
#endif

namespace pyops::PYOPS_ISA_NAMESPACE {

// `count` pixels of one image, from number `from` of its first plane on. Planes are `plane` long.
template <bool kMasked, class T>
void turn_run(const T* data, const T* mask, int64_t channels, int64_t plane, int64_t from,
              int64_t count, T* pixels) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, BFloat16>) {
    return gather_pixels<kMasked>(data, mask, channels, plane, from, count,
                                  reinterpret_cast<uint16_t*>(pixels), [](__m512i) {});
  }
#endif
  const Axis single{1, 1, 1, 1, 0, 1}, all{plane, plane, 1, 1, 0, 1};
  const Images<T> images{data, mask, channels, channels, single, all};
  turn_planes<kMasked>(images, from, count, channels, pixels, channels, channels);
}

// The same of all pixels of a batch.
template <bool kMasked, class T>
void to_pixels(const T* data, const T* mask, int64_t batch, int64_t channels, int64_t plane,
               T* pixels) {
  constexpr int64_t kRun = 256;
  const int64_t runs = ceil_div(plane, kRun);
  parallel_for(0, batch * runs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) {
      const int64_t n = run / runs, i = run % runs * kRun, count = std::min(kRun, plane - i);
      turn_run<kMasked>(data, mask, channels, plane, n * channels * plane + i, count,
                        pixels + (n * plane + i) * channels);
    }
  });
}

// What the weight gradient of planes is made of, and the gradient of pixels' weights in its place.
template <bool kMasked, class T>
class PlanesAsPixels {
 public:
  explicit PlanesAsPixels(const Conv2dBackwardParams& p)
      : p_(p),
        taps_(p.kh * p.kw),
        x_(p.n * p.c * p.h * p.w),
        gradient_(p.n * p.o * p.oh * p.ow),
        weight_(taps_ > 1 ? p.o * p.c * taps_ : 0) {
    const auto data = [](const void* tensor) { return static_cast<const T*>(tensor); };
    to_pixels<false>(data(p.x), data(nullptr), p.n, p.c, p.h * p.w, x_.get());
    to_pixels<kMasked>(data(p.grad_y), data(p.y), p.n, p.o, p.oh * p.ow, gradient_.get());
  }

  Conv2dBackwardParams pixels() const {
    Conv2dBackwardParams pixels = p_;
    pixels.channels_last = true;
    pixels.x = x_.get(), pixels.grad_y = gradient_.get(), pixels.y = nullptr;
    if (taps_ > 1) pixels.grad_weight = weight_.get();
    return pixels;
  }

  void put_in_order() const {
    if (taps_ == 1) return;
    parallel_for(0, p_.o, 1, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o) {
        const T* from = weight_.get() + o * p_.c * taps_;
        T* to = static_cast<T*>(p_.grad_weight) + o * p_.c * taps_;
        for (int64_t c = 0; c < p_.c; c += V::kWidth) put_channels(from, c, to);
      }
    });
  }

 private:
  using V = Vec<float>;

  // Some channels of an output's weights, their taps side by side.
  void put_channels(const T* from, int64_t c, T* to) const {
    const int some = static_cast<int>(std::min<int64_t>(V::kWidth, p_.c - c));
    for (int64_t t = 0; t < taps_; t += V::kWidth) {
      const int n = static_cast<int>(std::min<int64_t>(V::kWidth, taps_ - t));
      V block[V::kWidth];
      for (int k = 0; k < V::kWidth; ++k) {
        block[k] = k < n ? load(from + (t + k) * p_.c + c, some) : V::zero();
      }
      transpose(block);
      for (int k = 0; k < some; ++k) store(block[k], to + (c + k) * taps_ + t, n);
    }
  }

  const Conv2dBackwardParams& p_;
  const int64_t taps_;
  const Scratch<T> x_, gradient_, weight_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
