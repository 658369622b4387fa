// The input gradient of depthwise planes whose windows are two columns apart. Columns of one
// residue meet the same taps, so a vector of even and one of odd columns are summed side by side
// and leave as what they are, two vectors of a row; apart, either would be written element by
// element.
#pragma once

#include "conv2d/depthwise_planar_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

template <class T>
class DepthwiseGradient {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;

 public:
  static bool pays(const Conv2dShape& s) {
    return is_depthwise(s) && !s.channels_last && s.stride_w == 2 && s.w > 1;
  }

  explicit DepthwiseGradient(const Conv2dBackwardParams& p)
      : p_(p),
        even_(gradient_phase(forward_axis_x(p), 0)),
        odd_(gradient_phase(forward_axis_x(p), 1)),
        gradient_{static_cast<const T*>(p.grad_y), nullptr, p.o, p.o, around(forward_axis_y(p)),
                  around(forward_axis_x(p))},
        padded_(gradient_),
        rows_(gradient_phases(forward_axis_y(p))) {
    const Axis forward = forward_axis_y(p);
    for (int64_t y = 0; y < gradient_phases(forward); ++y) rows_[y] = gradient_phase(forward, y);
  }

  void run() const {
    const int64_t taps = p_.kh * p_.kw;
    parallel_for(0, p_.n * p_.c, 1, [&](int64_t begin, int64_t end) {
      const Scratch<Acc> image(padded_.size()), weights(taps);
      std::fill_n(image.get(), padded_.size(), Acc{0});
      for (int64_t plane = begin; plane < end; ++plane) {
        const T* weight = static_cast<const T*>(p_.weight) + plane % p_.c * taps;
        for (int64_t t = 0; t < taps; ++t) weights[t] = static_cast<Acc>(weight[t]);
        padded_.fill(gradient_, plane * p_.oh * p_.ow, image.get());
        run_plane(image.get(), weights.get(), static_cast<T*>(p_.grad_x) + plane * p_.h * p_.w);
      }
    });
  }

 private:
  // Every position that an input of any phase sees.
  static Axis around(const Axis& forward) {
    const int64_t size = forward.positions;
    int64_t positions = 1, begin = size, end = 0;
    for (int64_t first = 0; first < gradient_phases(forward); ++first) {
      const Axis axis = gradient_phase(forward, first).axis;
      positions = std::max(positions, axis.positions);
      if (axis.taps == 0) continue;
      begin = std::min(begin, axis.at(0, 0)), end = std::max(end, axis.at(0, axis.taps - 1));
    }
    return {size, positions, std::max<int64_t>(1, end - begin + 1), 1, begin, 1};
  }

  void run_plane(const Acc* image, const Acc* weights, T* out) const {
    for (int64_t first = 0; first < gradient_phases(forward_axis_y(p_)); ++first) {
      const GradientPhase& y = rows_[first];
      const AnyTaps even{*this, y, even_, image, weights}, odd{*this, y, odd_, image, weights};
      if (std::min(even.count(), odd.count()) == 0 || std::max(even.count(), odd.count()) > kFew) {
        run_phase(y, even, odd, out);
        continue;
      }
      with_constant<kFew>(even.count(), [&]<int kEven>(std::integral_constant<int, kEven>) {
        with_constant<kFew>(odd.count(), [&]<int kOdd>(std::integral_constant<int, kOdd>) {
          run_phase(y, FewTaps<kEven>(even), FewTaps<kOdd>(odd), out);
        });
      });
    }
  }

  template <class Even, class Odd>
  void run_phase(const GradientPhase& y, const Even& even, const Odd& odd, T* out) const {
    constexpr int64_t kAhead = 1024 / sizeof(T);
    for (int64_t row = 0; row < y.axis.positions; ++row) {
      T* to = out + (y.first + row * p_.stride_h) * p_.w;
      const int64_t at = row * padded_.row_stride();
      for (int64_t q = 0, left = p_.w; left > 0; q += V::kWidth, to += 2 * V::kWidth) {
        prefetch_to_write(to + kAhead);
        const auto [low, high] = interleave(even.sum(at + q), odd.sum(at + q));
        store(low, to, static_cast<int>(std::min<int64_t>(V::kWidth, left)));
        left -= V::kWidth;
        if (left > 0) {
          store(high, to + V::kWidth, static_cast<int>(std::min<int64_t>(V::kWidth, left)));
        }
        left -= V::kWidth;
      }
    }
  }

  // The taps that positions of a phase see.
  struct AnyTaps {
    const DepthwiseGradient& job;
    const GradientPhase &y, &x;
    const Acc *image, *weights;

    int64_t count() const { return y.axis.taps * x.axis.taps; }
    // f(weight, where the phase's first position meets it)
    template <class F>
    void each(const F& f) const {
      for (int64_t j = 0; j < y.axis.taps; ++j) {
        const int64_t row = y.axis.at(0, j) - job.padded_.y.origin;
        const Acc* from = image + row * job.padded_.row_stride();
        for (int64_t k = 0; k < x.axis.taps; ++k) {
          f(weights[y.tap(j) * job.p_.kw + x.tap(k)],
            from + x.axis.at(0, k) - job.padded_.x.origin);
        }
      }
    }
    // Of the positions from `at` of the padded plane on.
    V sum(int64_t at) const {
      V sum = V::zero();
      each([&](Acc weight, const Acc* from) {
        sum = V::fma(V::set1(weight), V::load(from + at), sum);
      });
      return sum;
    }
  };

  // The same with their weights in registers.
  static constexpr int kFew = 4;
  template <int kTaps>
  struct FewTaps {
    V weights[kTaps];
    const Acc* from[kTaps];

    explicit FewTaps(const AnyTaps& taps) {
      int t = 0;
      taps.each([&](Acc weight, const Acc* at) {
        weights[t] = V::set1(weight), from[t] = at;
        ++t;
      });
    }
    [[gnu::always_inline]] V sum(int64_t at) const {
      V sum = weights[0] * V::load(from[0] + at);
#pragma GCC unroll 4
      for (int t = 1; t < kTaps; ++t) sum = V::fma(weights[t], V::load(from[t] + at), sum);
      return sum;
    }
  };

  const Conv2dBackwardParams& p_;
  const GradientPhase even_, odd_;
  const Images<T> gradient_;
  const PaddedPlane<T> padded_;
  const Scratch<GradientPhase> rows_;  // of each residue
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
