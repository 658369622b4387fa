// Planes of bfloat16 as pixels: dot products along positions take pairs of them, which pixels have
// for all channels side by side, where planes would be transposed panel by panel for every tap.
#pragma once

#include "conv2d/pixel_image_bf16.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Images of `plane` numbers a channel.
template <bool kMasked>
void to_pixels(const BFloat16* data, const BFloat16* mask, int64_t batch, int64_t channels,
               int64_t plane, BFloat16* pixels) {
  constexpr int64_t kRun = 256;
  const int64_t runs = ceil_div(plane, kRun);
  parallel_for(0, batch * runs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) {
      const int64_t n = run / runs, i = run % runs * kRun;
      auto* to = reinterpret_cast<uint16_t*>(pixels + (n * plane + i) * channels);
      gather_pixels<kMasked>(data, mask, channels, plane, n * channels * plane + i,
                             std::min(kRun, plane - i), to, [](__m512i) {});
    }
  });
}

// Small planes fill no panel of positions, and strided ones are read in pieces; others lose by what
// passes through memory once more (Zen 5, November 2026; the table in docs/performance.md).
inline bool pays_as_pixels(const Conv2dShape& s) {
  constexpr int64_t kSmallPlane = 192, kFewPositions = 256, kFewChannels = 32;
  const int64_t plane = s.oh * s.ow, taps = s.kh * s.kw;
  if (s.channels_last || s.groups > 1 || std::min(s.c, s.o) < kFewChannels) return false;
  if (taps > 1 && s.n * plane < kFewPositions) return false;  // the weights' way back
  return plane < kSmallPlane || (taps > 1 && s.stride_w > 1);
}

// What the weight gradient of planes is made of, and the gradient of pixels' weights in its place.
template <bool kMasked>
class PlanesAsPixels {
 public:
  explicit PlanesAsPixels(const Conv2dBackwardParams& p)
      : p_(p),
        taps_(p.kh * p.kw),
        x_(p.n * p.c * p.h * p.w),
        gradient_(p.n * p.o * p.oh * p.ow),
        weight_(taps_ > 1 ? p.o * p.c * taps_ : 0) {
    const auto data = [](const void* tensor) { return static_cast<const BFloat16*>(tensor); };
    to_pixels<false>(data(p.x), nullptr, p.n, p.c, p.h * p.w, x_.get());
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
        const BFloat16* from = weight_.get() + o * p_.c * taps_;
        BFloat16* to = static_cast<BFloat16*>(p_.grad_weight) + o * p_.c * taps_;
        for (int64_t c = 0; c < p_.c; ++c) {
          for (int64_t t = 0; t < taps_; ++t) *to++ = from[t * p_.c + c];
        }
      }
    });
  }

 private:
  const Conv2dBackwardParams& p_;
  const int64_t taps_;
  const Scratch<BFloat16> x_, gradient_, weight_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
