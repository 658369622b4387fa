// The weights by which an input gradient is a correlation: of each input channel, the outputs'
// weights for the taps of a phase. Where neighbouring channels lie side by side and there is one
// tap, they are read where they are; else a transposed copy, in blocks, as each line of memory
// holds weights of many channels.
#pragma once

#include "conv2d/geometry_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

template <class T>
class PhaseWeight {
 public:
  PhaseWeight(const Conv2dShape& s, const T* weight, const GradientPhase& y, const GradientPhase& x)
      : weight_(weight),
        y_(y),
        x_(x),
        pixel_(s.channels_last && !is_depthwise(s)),
        outs_(s.group_o()),
        channels_(is_depthwise(s) ? s.c : s.group_c()),
        kernel_(s.kh * s.kw),
        kernel_x_(s.kw),
        out_stride_(s.group_c() * kernel_),
        window_(y.axis.taps * x.axis.taps),
        in_place_(!kDense && window_ == 1 && !is_depthwise(s) && (pixel_ || kernel_ == 1)),
        copy_(in_place_ ? 0 : channels_ * row()) {
    if (in_place_) return;
    parallel_for(0, ceil_div(channels_, kBlock), 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin * kBlock; c < std::min(end * kBlock, channels_); c += kBlock) {
        pixel_ ? copy_pixels(c) : copy_planes(c);
      }
    });
  }

  StridedOperand<T> operand() const {
    if (in_place_) return {weight_ + tap(0), channels_, 1, out_stride_};
    return {copy_.get(), channels_, row(), 1};
  }

 private:
  using V = Vec<acc_t<T>>;
  static constexpr int64_t kBlock = 64 / sizeof(T);  // channels of a line
  // The AMX unit's images of 16 bits take weights by rows.
#if defined(__AMX_TILE__)
  static constexpr bool kDense = std::is_same_v<T, BFloat16>;
#else
  static constexpr bool kDense = false;
#endif

  int64_t row() const { return outs_ * window_; }
  // Of the phase's tap number t, where the weights of an output lie.
  int64_t tap(int64_t t) const {
    const int64_t ky = y_.tap_first + t / x_.axis.taps * y_.tap_step;
    const int64_t kx = x_.tap_first + t % x_.axis.taps * x_.tap_step;
    return (ky * kernel_x_ + kx) * (pixel_ ? channels_ : 1);
  }

  // Channels of a line from c on: (tap, output) of each from (output, tap, channel).
  void copy_pixels(int64_t c) {
    const int64_t end = std::min(c + kBlock, channels_);
    for (int64_t t = 0; t < window_; ++t) {
      const T* from = weight_ + tap(t);
      for (int64_t o = 0; o < outs_; o += V::kWidth) {
        const int some = static_cast<int>(std::min<int64_t>(V::kWidth, outs_ - o));
        for (int64_t i = c; i < end; i += V::kWidth) {
          const int n = static_cast<int>(std::min<int64_t>(V::kWidth, end - i));
          transpose_block(from + o * out_stride_ + i, some, n, &copy_[i * row() + t * outs_ + o]);
        }
      }
    }
  }

  // (channel, output) from (output, channel).
  void transpose_block(const T* from, int outs, int channels, T* to) const {
    if constexpr (std::is_same_v<acc_t<T>, float>) {
      V block[V::kWidth];
      for (int o = 0; o < V::kWidth; ++o) {
        block[o] = o < outs ? load_some(from + o * out_stride_, channels) : V::zero();
        __builtin_prefetch(from + (o + V::kWidth) * out_stride_);
      }
      transpose(block);
      for (int c = 0; c < channels; ++c) {
        outs == V::kWidth ? block[c].store(to + c * row()) : block[c].store(to + c * row(), outs);
      }
    } else {
      for (int c = 0; c < channels; ++c) {
        for (int o = 0; o < outs; ++o) to[c * row() + o] = from[o * out_stride_ + c];
      }
    }
  }
  static V load_some(const T* from, int n) {
    return n == V::kWidth ? V::load(from) : V::load(from, n);
  }

  // The same, (output, tap) of each from (output, channel, tap).
  void copy_planes(int64_t c) {
    const int64_t some = std::min(kBlock, channels_ - c);
    Scratch<int64_t> taps(window_);
    for (int64_t t = 0; t < window_; ++t) taps[t] = tap(t);
    for (int64_t o = 0; o < outs_; ++o) {
      const T* from = weight_ + o * out_stride_ + c * kernel_;
      T* to = &copy_[c * row() + o * window_];
      for (int64_t i = 0; i < some; ++i, from += kernel_, to += row()) {
        for (int64_t t = 0; t < window_; ++t) to[t] = from[taps[t]];
      }
    }
  }

  const T* weight_;
  GradientPhase y_, x_;
  bool pixel_;
  int64_t outs_, channels_, kernel_, kernel_x_, out_stride_, window_;
  bool in_place_;
  Scratch<T> copy_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
