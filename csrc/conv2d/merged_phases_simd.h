// The input gradient of a strided convolution of few channels, as a first layer's: the phases of
// the stride are the channels of one correlation, which would fill a fraction of a vector each.
// Its results are put in order afterwards, as a sub-pixel convolution's are (Shi et al. 2016,
// arXiv:1609.05158).
#pragma once

#include "conv2d/correlation_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Of one axis: the taps that any phase has, on which a position meets the gradient.
struct MergedAxis {
  Axis forward, axis;
  int64_t phases;
  bool merges;  // whether all phases' taps are neighbours

  explicit MergedAxis(const Axis& from)
      : forward(from), axis(gradient_phase(from, 0).axis), phases(gradient_phases(from)) {
    int64_t end = axis.origin + axis.taps;
    merges = axis.dilation == 1;
    for (int64_t phase = 1; phase < phases; ++phase) {
      const Axis one = gradient_phase(from, phase).axis;
      axis.origin = std::min(axis.origin, one.origin);
      end = std::max(end, one.origin + one.taps);
    }
    axis.taps = end - axis.origin;
  }

  // The kernel's tap that a phase has at tap j of all; -1 for none.
  int64_t tap(int64_t phase, int64_t j) const {
    const GradientPhase one = gradient_phase(forward, phase);
    const int64_t own = j + axis.origin - one.axis.origin;
    return own >= 0 && own < one.axis.taps ? one.tap(own) : -1;
  }
};

template <class T, bool kMasked>
class MergedPhases {
 public:
  explicit MergedPhases(const Conv2dBackwardParams& p)
      : p_(p), y_(forward_axis_y(p)), x_(forward_axis_x(p)), run_(x_.phases * p.c) {}

  // Whether whole vectors of channels are so much fewer: the results pass through memory once more.
  // Pixels of float32 have planar tiles for few channels, which lose by what their phases prepare
  // for few products alone (1.0 at 16 taps, 0.85 at 9, 1.2 at 4; Zen 5, November 2026).
  static bool pays(const Conv2dBackwardParams& p) {
    constexpr int64_t kWidth = Vec<acc_t<T>>::kWidth, kMost = 64;
    const int64_t phases = gradient_phases(forward_axis_y(p)) * gradient_phases(forward_axis_x(p));
    if (p.groups > 1 || phases == 1 || phases * p.c > kMost || p.o < kWidth) return false;
    const MergedAxis y(forward_axis_y(p)), x(forward_axis_x(p));
    const int64_t apart = p.kh * p.kw * round_up(p.c, kWidth);
    const int64_t merged = y.axis.taps * x.axis.taps * round_up(phases * p.c, kWidth);
    const bool has_tiles = std::is_same_v<T, float> && p.channels_last;
    if (has_tiles && y.axis.taps * x.axis.taps > 4) return false;
    return y.merges && x.merges && 3 * merged <= 2 * apart;
  }

  void run() {
    const Scratch<T> weight(channels() * p_.o * y_.axis.taps * x_.axis.taps);
    merge_weight(weight.get());
    const Images<T> images{nullptr, nullptr, p_.o, p_.o, y_.axis, x_.axis};
    const Weights<T> weights(weight.get(), channels(), p_.channels_last, images);
    constexpr int64_t kBytes = 4 << 20;  // of a few images' results
    const int64_t image = channels() * plane() * static_cast<int64_t>(sizeof(T));
    const int64_t some = std::clamp<int64_t>(num_threads() * kBytes / image, 1, p_.n);
    const Scratch<T> results(some * channels() * plane());
    for (int64_t n = 0; n < p_.n; n += some) {
      const int64_t batch = std::min(some, p_.n - n);
      correlate_merged(images, weights, n, batch, results.get());
      parallel_for(0, batch * y_.axis.positions, 8, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const int64_t k = row / y_.axis.positions, q = row % y_.axis.positions;
          const T* from = results.get() + k * channels() * plane();
          T* to = static_cast<T*>(p_.grad_x) + (n + k) * p_.c * p_.h * p_.w;
          const int64_t rows = std::min(y_.phases, p_.h - q * p_.stride_h);
          for (int64_t phase = 0; phase < rows; ++phase) put_row(from, q, phase, to);
        }
      });
    }
  }

 private:
  int64_t channels() const { return y_.phases * run_; }
  int64_t plane() const { return y_.axis.positions * x_.axis.positions; }

  // Channels in the order (rows' phase, columns' phase, channel of the input).
  void merge_weight(T* to) const {
    const auto* from = static_cast<const T*>(p_.weight);
    const int64_t taps = y_.axis.taps * x_.axis.taps, kernel = p_.kh * p_.kw;
    const bool pixel = p_.channels_last;
    const int64_t tap_step = pixel ? p_.o : 1, step = pixel ? 1 : taps;  // of the merged
    const int64_t tap_from = pixel ? p_.c : 1, c_from = pixel ? 1 : kernel;
    for (int64_t channel = 0; channel < channels(); ++channel, to += p_.o * taps) {
      const int64_t phase_x = channel % run_ / p_.c, c = channel % p_.c;
      for (int64_t t = 0; t < taps; ++t) {
        const int64_t ky = y_.tap(channel / run_, t / x_.axis.taps);
        const int64_t kx = x_.tap(phase_x, t % x_.axis.taps);
        const bool none = ky < 0 || kx < 0;
        const int64_t tap = none ? 0 : (ky * p_.kw + kx) * tap_from + c * c_from;
        for (int64_t o = 0; o < p_.o; ++o) {
          to[t * tap_step + o * step] = none ? T{0} : from[tap + o * p_.c * kernel];
        }
      }
    }
  }

  void correlate_merged(Images<T> images, const Weights<T>& weights, int64_t n, int64_t batch,
                        T* results) const {
    const int64_t at = n * p_.o * p_.oh * p_.ow;
    images.data = static_cast<const T*>(p_.grad_y) + at;
    if (kMasked) images.mask = static_cast<const T*>(p_.y) + at;
    correlate<kMasked, T>({.channels_last = p_.channels_last,
                           .depthwise = false,
                           .images = images,
                           .all_rows = y_.axis.positions,
                           .batch = batch,
                           .weights = &weights,
                           .channels = channels(),
                           .result = results,
                           .channel_stride = plane(),
                           .map = dense_map(p_.channels_last, batch, plane(), channels()),
                           .epilogue = {nullptr, false},
                           .precision = p_.precision});
  }

  // Row q * stride + phase of an image of grad_x.
  void put_row(const T* from, int64_t q, int64_t phase, T* to) const {
    const int64_t row = q * p_.stride_h + phase, columns = x_.axis.positions;
    if (p_.channels_last) {
      from += q * columns * channels() + phase * run_;
      to += row * p_.w * p_.c;
      const T* const end = to + p_.w * p_.c;
      for (; to < end; from += channels(), to += run_) {
        for (int64_t e = 0; e < std::min<int64_t>(run_, end - to); ++e) to[e] = from[e];
      }
      return;
    }
    for (int64_t e = 0; e < run_; ++e) {
      const T* line = from + (phase * run_ + e) * plane() + q * columns;
      T* out = to + (e % p_.c * p_.h + row) * p_.w;
      for (int64_t i = e / p_.c; i < p_.w; i += x_.phases) out[i] = *line++;
    }
  }

  const Conv2dBackwardParams& p_;
  const MergedAxis y_, x_;
  const int64_t run_;  // channels of a phase of rows
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
