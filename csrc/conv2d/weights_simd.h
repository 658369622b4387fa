// The weights of a correlation, elements (result's channel, image's channel, tap), where they are:
// an input gradient's have their channels exchanged and the taps of a phase, in reverse. Kernels
// that pack their own panels read them so; for others there is a dense copy, in blocks, since each
// line of memory holds weights of many channels.
#pragma once

#include <optional>

#include "conv2d/geometry_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// An input gradient's weights of planes, the channels of a tap side by side: where the matrix of a
// phase has rows (image's channel, tap). All phases at once, since a line of memory has taps of
// each.
template <class T>
class GradientColumns {
 public:
  GradientColumns(const Conv2dShape& s, const T* data)
      : s_(s), data_(data), channels_(s.group_c()), images_(s.group_o()), kernel_(s.kh * s.kw) {}

  // Of the phase that begins at these coordinates of the input.
  const T* of(int64_t y, int64_t x) const {
    if (columns_ == nullptr) copy();
    return columns_ + begins_[y * phases_x() + x];
  }

 private:
  using V = Vec<acc_t<T>>;
  // Where a tap of image's channel 0 goes, and how far the next channel's is.
  struct Column {
    T* to;
    int64_t step;
  };

  int64_t phases_x() const { return gradient_phases(forward_axis_x(s_)); }

  void copy() const {
    columns_ = room_.emplace(channels_ * images_ * kernel_).get();
    begins_ = begins_room_.emplace(gradient_phases(forward_axis_y(s_)) * phases_x()).get();
    T* to = columns_;
    const Scratch<Column> columns(kernel_);
    std::fill_n(columns.get(), kernel_, Column{nullptr, 0});
    for_phases(s_, [&](const GradientPhase& y, const GradientPhase& x) {
      begins_[y.first * phases_x() + x.first] = to - columns_;
      const int64_t window = y.axis.taps * x.axis.taps;
      for (int64_t t = 0; t < window; ++t) {
        const int64_t tap = y.tap(t / x.axis.taps) * s_.kw + x.tap(t % x.axis.taps);
        columns[tap] = {to + t * channels_, window * channels_};
      }
      to += images_ * window * channels_;
    });
    parallel_for(0, images_, 4, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) copy_image(columns.get(), j);
    });
  }

  void copy_image(const Column* columns, int64_t j) const {
    const T* from = data_ + j * channels_ * kernel_;
    const auto put = [&](V x, int64_t tap, int64_t c, int n) {
      const Column& column = columns[tap];
      if (column.to != nullptr) store(x, column.to + j * column.step + c, n);
    };
    for (int64_t c = 0; c < channels_; c += V::kWidth) {
      const int n = static_cast<int>(std::min<int64_t>(V::kWidth, channels_ - c));
      int64_t tap = 0;
      if constexpr (std::is_same_v<acc_t<T>, float>) {
        for (; n == V::kWidth && kernel_ - tap >= V::kWidth / 2; tap += V::kWidth) {
          const int taps = static_cast<int>(std::min<int64_t>(V::kWidth, kernel_ - tap));
          V block[V::kWidth];
          for (int k = 0; k < V::kWidth; ++k) block[k] = load(from + (c + k) * kernel_ + tap, taps);
          transpose(block);
          for (int k = 0; k < taps; ++k) put(block[k], tap + k, c, n);
        }
      }
      for (; tap < kernel_; ++tap)
        put(load_strided(from + c * kernel_ + tap, kernel_, n), tap, c, n);
    }
  }

  const Conv2dShape s_;
  const T* data_;
  const int64_t channels_, images_, kernel_;
  mutable std::optional<Scratch<T>> room_;
  mutable std::optional<Scratch<int64_t>> begins_room_;
  mutable T* columns_ = nullptr;
  mutable int64_t* begins_ = nullptr;  // of the phases
};

template <class T>
class Weights {
 public:
  // Of a forward: dense rows of taps in the order of the images.
  Weights(const T* data, int64_t channels, bool pixel, const Images<T>& images)
      : data_(data),
        pixel_(pixel),
        dense_(true),
        channels_(channels),
        images_(images.channels),
        taps_x_(images.x.taps),
        window_(images.y.taps * taps_x_),
        kernel_(window_),
        channel_stride_(images.taps()),
        image_stride_(pixel ? 1 : window_),
        tap_x_(pixel ? images_ : 1),
        tap_y_(tap_x_ * taps_x_) {}

  // Of an input gradient, whose columns may be asked for.
  Weights(const Conv2dShape& s, const T* data, const GradientPhase& y, const GradientPhase& x,
          const GradientColumns<T>& columns)
      : data_(data),
        pixel_(s.channels_last && !is_depthwise(s)),
        dense_(false),
        channels_(is_depthwise(s) ? s.c : s.group_c()),
        images_(s.group_o()),
        taps_x_(x.axis.taps),
        window_(y.axis.taps * taps_x_),
        kernel_(s.kh * s.kw),
        channel_stride_(pixel_ ? 1 : kernel_),
        image_stride_(s.group_c() * kernel_),
        columns_(&columns),
        phase_y_(y.first),
        phase_x_(x.first) {
    const int64_t tap = pixel_ ? channels_ : 1;
    first_ = (y.tap_first * s.kw + x.tap_first) * tap;
    tap_x_ = x.tap_step * tap;
    tap_y_ = y.tap_step * s.kw * tap;
  }

  // Where they are: the taps' weights of a channel and an image's channel, with the next channels'
  // or image's channels' at a distance.
  const T* line(int64_t channel, int64_t image) const {
    return data_ + channel * channel_stride_ + image * image_stride_;
  }
  bool is_forward() const { return dense_; }
  int64_t channel_stride() const { return channel_stride_; }
  int64_t image_stride() const { return image_stride_; }
  int64_t window() const { return window_; }
  int64_t kernel() const { return kernel_; }  // the window of all phases

  // f(tap, its distance from the kernel's first)
  template <class F>
  void for_taps(const F& f) const {
    for (int64_t t = 0, y = 0; t < window_; ++y) {
      for (int64_t x = 0; x < taps_x_; ++x, ++t) f(t, first_ + y * tap_y_ + x * tap_x_);
    }
  }

  // Rows of channels, columns (image's channel, tap) in the order of the images. For its first call
  // they may have to be copied: that is no thread's.
  StridedOperand<T> matrix() const {
    if (dense_) return {data_, channels_, channel_stride_, 1};
    if (window_ == 1 && channel_stride_ == 1) return at_tap(first_);
    // Rows of planes would begin a power of two apart, but a depthwise kernel reads such.
    if (!pixel_ && !kAllDense && images_ > 1)
      return {columns_->of(phase_y_, phase_x_), channels_, 1, channels_};
    if (rows_ == nullptr) copy();
    return {rows_, channels_, images_ * window_, 1};
  }

  // A panel of kWidth channels from i on, its depth in the order (ky, kx, image's channel) whatever
  // the images'.
  template <int kWidth>
  void pack_taps(int64_t i, float* panel) const {
    if (pixel_) {
      return for_taps([&](int64_t t, int64_t at) {
        at_tap(at).template pack<kWidth>(i, 0, images_, panel + t * images_ * kWidth);
      });
    }
    constexpr int64_t kTogether = 16;  // channels of the images: whole lines of rows
    const Scratch<float> kernels(kTogether * kernel_ * kWidth);
    for (int64_t j = 0; j < images_; j += kTogether) {
      const int64_t some = std::min(kTogether, images_ - j);
      if (dense_) {
        matrix().template pack<kWidth>(i, j * kernel_, some * kernel_, kernels.get());
      } else {
        for (int64_t k = 0; k < some; ++k) {
          StridedOperand<T>{line(0, j + k), channels_, channel_stride_, 1}.template pack<kWidth>(
              i, 0, kernel_, &kernels[k * kernel_ * kWidth]);
        }
      }
      for_taps([&](int64_t t, int64_t at) {
        for (int64_t k = 0; k < some; ++k) {
          std::copy_n(&kernels[(k * kernel_ + at) * kWidth], kWidth,
                      panel + (t * images_ + j + k) * kWidth);
        }
      });
    }
  }

 private:
  using V = Vec<acc_t<T>>;
  static constexpr int64_t kBlock = 64 / sizeof(T);  // channels of a line
  // The packing of tiles takes rows.
#if defined(__AVX512BF16__)
  static constexpr bool kAllDense = true;
#else
  static constexpr bool kAllDense = false;
#endif

  StridedOperand<T> at_tap(int64_t at) const {
    return {data_ + at, channels_, channel_stride_, image_stride_};
  }

  void copy() const {
    rows_ = copy_.emplace(channels_ * images_ * window_).get();
    parallel_for(0, ceil_div(channels_, kBlock), 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin * kBlock; c < std::min(end * kBlock, channels_); c += kBlock) {
        const int64_t some = std::min(kBlock, channels_ - c);
        pixel_ ? copy_pixels(c, some) : copy_planes(c, some);
      }
    });
  }

  void copy_pixels(int64_t c, int64_t channels) const {
    const int64_t row = images_ * window_;
    for_taps([&](int64_t t, int64_t at) {
      for (int64_t j = 0; j < images_; j += V::kWidth) {
        const int some = static_cast<int>(std::min<int64_t>(V::kWidth, images_ - j));
        for (int64_t i = 0; i < channels; i += V::kWidth) {
          const int n = static_cast<int>(std::min<int64_t>(V::kWidth, channels - i));
          copy_transposed(data_ + at + j * image_stride_ + c + i, some, n,
                          rows_ + (c + i) * row + t * images_ + j);
        }
      }
    });
  }
  void copy_transposed(const T* from, int images, int channels, T* to) const {
    const int64_t row = images_ * window_;
    if constexpr (std::is_same_v<acc_t<T>, float>) {
      V block[V::kWidth];
      for (int j = 0; j < V::kWidth; ++j) {
        const T* line = from + j * image_stride_;
        block[j] = j < images ? load(line, channels) : V::zero();
        prefetch_to_read(line + V::kWidth * image_stride_);
      }
      transpose(block);
      for (int c = 0; c < channels; ++c) store(block[c], to + c * row, images);
    } else {
      for (int c = 0; c < channels; ++c) {
        for (int j = 0; j < images; ++j) to[c * row + j] = from[j * image_stride_ + c];
      }
    }
  }

  void copy_planes(int64_t c, int64_t channels) const {
    const int64_t row = images_ * window_;
    for (int64_t j = 0; j < images_; ++j) {
      const T* from = data_ + c * channel_stride_ + j * image_stride_;
      T* to = rows_ + c * row + j * window_;
      for (int64_t i = 0; i < channels; ++i, from += channel_stride_, to += row) {
        for_taps([&](int64_t t, int64_t at) { to[t] = from[at]; });
      }
    }
  }

  const T* data_;
  bool pixel_, dense_;
  int64_t channels_, images_, taps_x_, window_, kernel_;
  int64_t channel_stride_, image_stride_, first_ = 0, tap_x_, tap_y_;
  const GradientColumns<T>* columns_ = nullptr;
  int64_t phase_y_ = 0, phase_x_ = 0;
  mutable std::optional<Scratch<T>> copy_;
  mutable T* rows_ = nullptr;  // of the copy
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
