// Where outputs, taps and inputs of a convolution meet along one spatial axis, in both directions.
#pragma once

#include "conv2d/conv2d.h"

namespace pyops {

// Output o reads input o * stride - padding + k * dilation through tap k; outside [0, size) is
// zero.
struct ConvAxis {
  int64_t size, outputs, taps;
  int64_t stride, padding, dilation;

  PYOPS_HOST_DEVICE int64_t start(int64_t o) const { return o * stride - padding; }
  PYOPS_HOST_DEVICE int64_t input(int64_t o, int64_t k) const { return start(o) + k * dilation; }

  // The output that reads input i through tap k, or -1.
  PYOPS_HOST_DEVICE int64_t output(int64_t i, int64_t k) const {
    const int64_t distance = i + padding - k * dilation;
    if (distance < 0 || distance % stride != 0) return -1;
    const int64_t o = distance / stride;
    return o < outputs ? o : -1;
  }

  // Classes of inputs that are alike modulo the stride; an axis shorter than it has no more.
  PYOPS_HOST_DEVICE int64_t phases() const { return stride < size ? stride : size; }
};

// Inputs first + j * stride, and the taps that reach all of them, tap + t * step: input j meets
// output origin + j - t * hop through tap number t, where that is an output.
struct ConvPhase {
  int64_t first, inputs;
  int64_t tap, step, taps;
  int64_t origin, hop;

  PYOPS_HOST_DEVICE ConvPhase(const ConvAxis& axis, int64_t phase)
      : first(phase),
        inputs((axis.size - phase + axis.stride - 1) / axis.stride),
        tap(next_tap(axis, 0)),
        step(next_tap(axis, tap + 1) - tap),
        taps(tap < axis.taps ? (axis.taps - tap + step - 1) / step : 0),
        origin(taps > 0 ? (first + axis.padding - tap * axis.dilation) / axis.stride : 0),
        hop(taps > 1 ? step * axis.dilation / axis.stride : 0) {}

 private:
  // The first tap from k on that reaches the phase, or one past the last.
  PYOPS_HOST_DEVICE int64_t next_tap(const ConvAxis& axis, int64_t k) const {
    while (k < axis.taps && (first + axis.padding - k * axis.dilation) % axis.stride != 0) ++k;
    return k;
  }
};

PYOPS_HOST_DEVICE inline ConvAxis axis_h(const Conv2dShape& s) {
  return {s.h, s.oh, s.kh, s.stride_h, s.padding_h, s.dilation_h};
}
PYOPS_HOST_DEVICE inline ConvAxis axis_w(const Conv2dShape& s) {
  return {s.w, s.ow, s.kw, s.stride_w, s.padding_w, s.dilation_w};
}

// How far neighbours lie apart in a dense batch of images, in either order.
struct ImageStrides {
  int64_t n, c, y, x;

  PYOPS_HOST_DEVICE ImageStrides(bool channels_last, int64_t channels, int64_t rows, int64_t cols)
      : n(channels * rows * cols),
        c(channels_last ? 1 : rows * cols),
        y(channels_last ? cols * channels : cols),
        x(channels_last ? channels : 1) {}

  PYOPS_HOST_DEVICE int64_t at(int64_t image, int64_t channel, int64_t row, int64_t col) const {
    return image * n + channel * c + row * y + col * x;
  }
};

PYOPS_HOST_DEVICE inline ImageStrides input_strides(const Conv2dShape& s) {
  return {s.channels_last, s.c, s.h, s.w};
}
PYOPS_HOST_DEVICE inline ImageStrides output_strides(const Conv2dShape& s) {
  return {s.channels_last, s.o, s.oh, s.ow};
}
// Of a weight: n counts output channels.
PYOPS_HOST_DEVICE inline ImageStrides weight_strides(const Conv2dShape& s) {
  return {s.channels_last, s.group_c(), s.kh, s.kw};
}

// Element (n, c, y, x) number `e` of a dense batch of images in the order of memory.
struct ImagePlace {
  int64_t n, c, y, x;

  PYOPS_HOST_DEVICE ImagePlace(bool channels_last, int64_t channels, int64_t rows, int64_t cols,
                               int64_t e) {
    const int64_t pixel = channels_last ? e / channels : e;
    x = pixel % cols;
    y = pixel / cols % rows;
    const int64_t plane = pixel / cols / rows;
    c = channels_last ? e % channels : plane % channels;
    n = channels_last ? plane : plane / channels;
  }
};

}  // namespace pyops
