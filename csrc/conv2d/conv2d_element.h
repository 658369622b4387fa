// Elements as the kernels of CUDA read and write them, and the whole of what one thread computes
// where no tile is shared: depthwise convolutions, sums over positions, pooling.
#pragma once

#include "conv2d/conv2d_coordinates.h"
#include "gemm/parts.h"

namespace pyops {

template <class T>
PYOPS_HOST_DEVICE inline acc_t<T> value_at(const void* tensor, int64_t at) {
  return static_cast<acc_t<T>>(static_cast<const T*>(tensor)[at]);
}

// A NaN stays one.
template <class Acc>
PYOPS_HOST_DEVICE inline Acc rectified(Acc sum) {
  return sum <= 0 ? Acc(0) : sum;
}

// What a sum becomes on its way out.
template <class T>
PYOPS_HOST_DEVICE inline T finished(const Conv2dParams& p, int64_t o, acc_t<T> sum) {
  if (p.bias != nullptr) sum += value_at<T>(p.bias, o);
  return static_cast<T>(p.relu ? rectified(sum) : sum);
}

// The gradient of y where the ReLU let it through.
template <class T>
PYOPS_HOST_DEVICE inline acc_t<T> masked_grad(const Conv2dBackwardParams& p, int64_t at) {
  if (p.y != nullptr && value_at<T>(p.y, at) <= 0) return 0;
  return value_at<T>(p.grad_y, at);
}

// Element `e` of y, in the order of memory, where a group has one input channel.
template <class T>
PYOPS_HOST_DEVICE inline void depthwise_element(const Conv2dParams& p, int64_t e) {
  const ImagePlace to(p.channels_last, p.o, p.oh, p.ow, e);
  const ImageStrides in = input_strides(p);
  const ConvAxis h = axis_h(p), w = axis_w(p);
  const int64_t from = to.n * in.n + to.c / p.group_o() * in.c, weight = to.c * p.kh * p.kw;
  acc_t<T> sum = 0;
  for (int64_t ky = 0; ky < p.kh; ++ky) {
    const int64_t iy = h.input(to.y, ky);
    if (iy < 0 || iy >= p.h) continue;
    for (int64_t kx = 0; kx < p.kw; ++kx) {
      const int64_t ix = w.input(to.x, kx);
      if (ix < 0 || ix >= p.w) continue;
      sum += value_at<T>(p.x, from + iy * in.y + ix * in.x) *
             value_at<T>(p.weight, weight + ky * p.kw + kx);
    }
  }
  static_cast<T*>(p.y)[e] = finished<T>(p, to.c, sum);
}

// Element `e` of grad_x, in the order of memory, where a group has one input channel.
template <class T>
PYOPS_HOST_DEVICE inline void depthwise_gradient_element(const Conv2dBackwardParams& p, int64_t e) {
  const ImagePlace to(p.channels_last, p.c, p.h, p.w, e);
  const ImageStrides out = output_strides(p);
  const ConvAxis h = axis_h(p), w = axis_w(p);
  acc_t<T> sum = 0;
  for (int64_t ky = 0; ky < p.kh; ++ky) {
    const int64_t oy = h.output(to.y, ky);
    if (oy < 0) continue;
    for (int64_t kx = 0; kx < p.kw; ++kx) {
      const int64_t ox = w.output(to.x, kx);
      if (ox < 0) continue;
      for (int64_t o = to.c * p.group_o(); o < (to.c + 1) * p.group_o(); ++o) {
        sum += masked_grad<T>(p, to.n * out.n + o * out.c + oy * out.y + ox * out.x) *
               value_at<T>(p.weight, (o * p.kh + ky) * p.kw + kx);
      }
    }
  }
  static_cast<T*>(p.grad_x)[e] = static_cast<T>(sum);
}

// Sums over all positions, a column for every tap of the weight of an output channel whose group
// has one input channel, and after the taps one for the bias. Columns [first, end) are wanted. The
// positions are dealt out to `splits` threads, whose sums are added in their order.
struct PositionSums {
  int64_t outputs, first, end, splits;

  PYOPS_HOST_DEVICE int64_t count() const { return outputs * (end - first); }
  PYOPS_HOST_DEVICE int64_t threads() const { return count() * splits; }
};

// Neighbouring threads read neighbouring elements: channels where these come last, else positions.
template <class T>
PYOPS_HOST_DEVICE inline void sum_positions(const Conv2dBackwardParams& p, const PositionSums& sums,
                                            int64_t thread) {
  const int64_t columns = sums.end - sums.first, count = sums.count();
  const int64_t rest = p.channels_last ? thread / sums.outputs : thread / sums.splits;
  const int64_t o = p.channels_last ? thread % sums.outputs : rest / columns;
  const int64_t column = sums.first + rest % columns;
  const int64_t split = p.channels_last ? rest / columns : thread % sums.splits;
  const ConvAxis h = axis_h(p), w = axis_w(p);
  const ImageStrides in = input_strides(p), out = output_strides(p);
  const bool is_bias = column == p.kh * p.kw;
  const int64_t ky = column / p.kw, kx = column % p.kw, channel = o / p.group_o() * in.c;
  acc_t<T> sum = 0;
  for (int64_t i = split; i < p.n * p.oh * p.ow; i += sums.splits) {
    const int64_t row = i / p.ow, ox = i % p.ow, oy = row % p.oh, n = row / p.oh;
    const int64_t iy = h.input(oy, ky), ix = w.input(ox, kx);
    if (!is_bias && (iy < 0 || iy >= p.h || ix < 0 || ix >= p.w)) continue;
    const acc_t<T> grad = masked_grad<T>(p, n * out.n + o * out.c + oy * out.y + ox * out.x);
    sum += is_bias ? grad : grad * value_at<T>(p.x, n * in.n + channel + iy * in.y + ix * in.x);
  }
  static_cast<acc_t<T>*>(p.workspace)[split * count + o * columns + column - sums.first] = sum;
}

template <class T>
PYOPS_HOST_DEVICE inline void finish_positions(const Conv2dBackwardParams& p,
                                               const PositionSums& sums, int64_t e) {
  const int64_t columns = sums.end - sums.first, column = sums.first + e % columns;
  const T sum = static_cast<T>(sum_of_parts<acc_t<T>>(p.workspace, sums.splits, sums.count(), e));
  if (column == p.kh * p.kw) {
    static_cast<T*>(p.grad_bias)[e / columns] = sum;
  } else {
    static_cast<T*>(p.grad_weight)[e / columns * p.kh * p.kw + column] = sum;
  }
}

// The maximum of a window whose elements are taken in order: the first of equal ones, the last NaN.
template <class T>
struct WindowMaximum {
  T value = static_cast<T>(-__builtin_inff());
  int32_t offset = 0;

  PYOPS_HOST_DEVICE void take(T candidate, int64_t tap) {
    const auto v = static_cast<acc_t<T>>(candidate);
    if (v > static_cast<acc_t<T>>(value) || v != v) {
      value = candidate;
      offset = static_cast<int32_t>(tap);
    }
  }

  PYOPS_HOST_DEVICE int32_t tap() const {
    return static_cast<acc_t<T>>(value) <= 0 ? kNoTap : offset;
  }
};

template <class T>
PYOPS_HOST_DEVICE inline void store_pooled(const Conv2dPoolParams& p, int64_t at,
                                           const WindowMaximum<T>& best) {
  static_cast<T*>(p.y)[at] = best.value;
  if (p.offsets != nullptr) p.store_offset(at, best.tap());
}

// Element `e` of the pooled result, in the order of memory, from the convolution's result in the
// workspace.
template <class T>
PYOPS_HOST_DEVICE inline void pool_element(const Conv2dPoolParams& p, int64_t e) {
  const ImagePlace to(p.channels_last, p.o, p.pooled_h, p.pooled_w, e);
  const ImageStrides from = output_strides(p);
  const T* y = static_cast<const T*>(p.workspace) + to.n * from.n + to.c * from.c;
  const PoolWindow rows = p.pool_h.window(to.y), cols = p.pool_w.window(to.x);
  WindowMaximum<T> best;
  for (int64_t i = rows.begin, ti = rows.first_tap; i < rows.end; i += p.pool_h.dilation, ++ti) {
    for (int64_t j = cols.begin, tj = cols.first_tap; j < cols.end; j += p.pool_w.dilation, ++tj) {
      best.take(y[i * from.y + j * from.x], ti * p.pool_w.kernel + tj);
    }
  }
  store_pooled(p, e, best);
}

// Element `e` of the gradient of the convolution's result, in the order of memory: what the windows
// over it send it, in their order.
template <class T>
PYOPS_HOST_DEVICE inline void unpool_element(const Conv2dPoolBackwardParams& p, int64_t e) {
  const ImagePlace to(p.channels_last, p.o, p.oh, p.ow, e);
  const ImageStrides from(p.channels_last, p.o, p.pooled_h, p.pooled_w);
  const PoolCovering rows = p.pool_h.covering(to.y, p.pooled_h);
  const PoolCovering cols = p.pool_w.covering(to.x, p.pooled_w);
  acc_t<T> sum = 0;
  for (int64_t py = rows.begin; py < rows.end; ++py) {
    const int64_t ti = p.pool_h.tap_at(py, to.y);
    if (ti < 0) continue;
    for (int64_t px = cols.begin; px < cols.end; ++px) {
      const int64_t tj = p.pool_w.tap_at(px, to.x);
      if (tj < 0) continue;
      const int64_t at = to.n * from.n + to.c * from.c + py * from.y + px * from.x;
      if (p.tap(at) == ti * p.pool_w.kernel + tj) sum += value_at<T>(p.grad_pooled, at);
    }
  }
  static_cast<T*>(p.grad_y)[e] = static_cast<T>(sum);
}

}  // namespace pyops
