// Where positions of a result and taps of a kernel meet an image, forward and backward.
#pragma once

#include <algorithm>
#include <numeric>

#include "conv2d/conv2d.h"
#include "gemm/gemm_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// floor and ceil for a positive divisor.
inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
inline int64_t ceil_div_signed(int64_t a, int64_t b) { return a / b + (a % b > 0); }

// One spatial axis: position q and tap k meet the image at q * stride + origin + k * dilation;
// outside [0, size) it is zero.
struct Axis {
  int64_t size, positions, taps;
  int64_t stride, origin, dilation;

  int64_t at(int64_t q, int64_t k) const { return q * stride + origin + k * dilation; }
  bool is_identity() const { return taps == 1 && stride == 1 && origin == 0 && positions == size; }
};

// A range of positions, taps or columns: those inside the image.
struct Inside {
  int64_t begin, end;
};

// Positions whose tap number `tap` is inside.
inline Inside positions_inside(const Axis& axis, int64_t tap) {
  const int64_t at = axis.at(0, tap);
  const int64_t begin = std::clamp<int64_t>(ceil_div_signed(-at, axis.stride), 0, axis.positions);
  return {begin, std::clamp(ceil_div_signed(axis.size - at, axis.stride), begin, axis.positions)};
}

// Taps of one position inside the image.
inline Inside taps_inside(const Axis& axis, int64_t position) {
  const int64_t at = axis.at(position, 0);
  const int64_t begin = std::clamp<int64_t>(ceil_div_signed(-at, axis.dilation), 0, axis.taps);
  return {begin, std::clamp(ceil_div_signed(axis.size - at, axis.dilation), begin, axis.taps)};
}

// A dense batch of images, or one group's channels of it.
template <class T>
struct Images {
  const T* data;
  const T* mask;  // of the same shape: where it is not positive the image counts as zero; or null
  int64_t channels;        // of the group
  int64_t total_channels;  // of the images
  Axis y, x;

  int64_t taps() const { return channels * y.taps * x.taps; }
  int64_t positions_per_image() const { return y.positions * x.positions; }
  // Whether every position is a pixel.
  bool is_identity() const { return x.is_identity() && y.is_identity(); }
};

// Walks the position grid in order.
struct Position {
  int64_t n, y, x;

  template <class T>
  Position(const Images<T>& images, int64_t index)
      : n(index / images.positions_per_image()),
        y(index % images.positions_per_image() / images.x.positions),
        x(index % images.x.positions) {}

  template <class T>
  void next_row(const Images<T>& images) {
    x = 0;
    if (++y == images.y.positions) y = 0, ++n;
  }
};

// Where positions of a result lie: rows of `cols` positions, `rows` of them in an image.
struct PositionMap {
  int64_t cols, rows;
  int64_t image_stride, row_stride, col_stride;

  int64_t offset(int64_t index) const {
    if (index < cols) return index * col_stride;
    const int64_t row = index / cols, col = index % cols;
    if (rows == 1) return row * image_stride + col * col_stride;  // divisions take their time
    return row / rows * image_stride + row % rows * row_stride + col * col_stride;
  }
  // From a row of `positions` to the next, whose end a dense result does not know.
  int64_t row_step(int64_t positions) const {
    return cols > positions ? positions * col_stride : row_stride;
  }
  // Positions of the same row from this one on.
  int64_t run(int64_t index) const { return cols - (index < cols ? index : index % cols); }
};

// What a convolution's results go through on their way out.
template <class T>
struct Epilogue {
  const T* bias;  // one per channel, or null
  bool relu;

  template <class V>
  V operator()(V x) const {
    // max returns its second operand for NaN, which keeps NaN as ReLU does.
    return relu ? V::max(V::zero(), x) : x;
  }
};

// Positions of a whole dense image of `channels` channels.
inline PositionMap dense_map(bool channels_last, int64_t batch, int64_t positions,
                             int64_t channels) {
  if (channels_last) return {batch * positions, 1, 0, 0, channels};
  return {positions, 1, channels * positions, 0, 1};
}

// Channels of a group start here, in an image and in (channel, tap) matrices alike.
inline int64_t channel_offset(bool channels_last, int64_t channel, int64_t plane) {
  return channels_last ? channel : channel * plane;
}

template <class T>
class Weights;

// result[channel, position] = Σ_tap weight[channel, tap] · images[tap at position]
template <class T>
struct Correlation {
  bool channels_last;
  bool depthwise;  // a channel of the result sees the image's channel of the same number alone
  Images<T> images;
  int64_t all_rows;  // of positions of an image, of which these may be some
  int64_t batch;
  const Weights<T>* weights;
  int64_t channels;  // of the result
  T* result;
  int64_t channel_stride;  // of a planar result
  PositionMap map;
  Epilogue<T> epilogue;
  Precision precision;
};

// With all rows. They decide how results are computed, so that where an image is cut changes none.
template <class T>
Correlation<T> uncut(Correlation<T> c) {
  c.images.y.positions = c.all_rows;
  return c;
}

inline bool is_depthwise(const Conv2dShape& s) {
  return s.groups > 1 && s.c == s.groups && s.o == s.groups;
}

inline Axis forward_axis_y(const Conv2dShape& s) {
  return {s.h, s.oh, s.kh, s.stride_h, -s.padding_h, s.dilation_h};
}
inline Axis forward_axis_x(const Conv2dShape& s) {
  return {s.w, s.ow, s.kw, s.stride_w, -s.padding_w, s.dilation_w};
}

// Input coordinates i = first + q * stride of one residue, and the taps that reach them.
struct GradientPhase {
  Axis axis;                    // over grad_y; its taps are those of the kernel below
  int64_t first;                // input coordinate of q = 0
  int64_t tap_first, tap_step;  // tap j of the axis is tap_first + j * tap_step of the kernel

  int64_t tap(int64_t j) const { return tap_first + j * tap_step; }
};

// i + padding = o * stride + k * dilation holds for every (stride / gcd)-th tap k. The taps go
// backwards, so that the coordinates of grad_y go forwards.
inline GradientPhase gradient_phase(const Axis& forward, int64_t first) {
  const int64_t stride = forward.stride, padding = -forward.origin;
  const int64_t residue = (first + padding) % stride;
  const int64_t step = stride / std::gcd(stride, forward.dilation);
  const int64_t some = std::min(step, forward.taps);
  int64_t k0 = 0;
  while (k0 < some && (k0 * forward.dilation - residue) % stride != 0) ++k0;
  const int64_t taps = k0 < some ? ceil_div(forward.taps - k0, step) : 0;
  const int64_t last = k0 + (taps - 1) * step;
  const Axis axis{.size = forward.positions,
                  .positions = ceil_div(forward.size - first, stride),
                  .taps = taps,
                  .stride = 1,
                  .origin = taps > 0 ? (first + padding - last * forward.dilation) / stride : 0,
                  .dilation = step * forward.dilation / stride};
  return {axis, first, last, -step};
}

// How many phases an axis has.
inline int64_t gradient_phases(const Axis& forward) {
  return std::min(forward.stride, forward.size);
}

// f(rows' phase, columns' phase) for every pair of them.
template <class F>
void for_phases(const Conv2dShape& s, const F& f) {
  const Axis rows = forward_axis_y(s), columns = forward_axis_x(s);
  for (int64_t y = 0; y < gradient_phases(rows); ++y) {
    const GradientPhase row = gradient_phase(rows, y);
    for (int64_t x = 0; x < gradient_phases(columns); ++x) f(row, gradient_phase(columns, x));
  }
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
