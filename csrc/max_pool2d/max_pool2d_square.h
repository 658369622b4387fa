// The usual square windows, unrolled: what one thread of their CUDA kernels computes. Planes of
// rows are walked down a column, a strip of outputs at a time, so that a row is loaded once for all
// of the outputs that read it; with channels last a thread has sixteen bytes of channels.
#pragma once

#include <limits>

#include "core/pack.h"
#include "max_pool2d/max_pool2d_element.h"

namespace pyops {

// A strip's loads are all in flight at once: about 28 registers of them for the largest window.
inline constexpr int kStrip = 4;

template <class T>
inline constexpr acc_t<T> kLowest = -std::numeric_limits<acc_t<T>>::infinity();

// Calls f.template operator()<kernel, stride>() if the call's windows are square ones that are
// unrolled; says whether they are.
template <class Params, class F>
bool with_square_window(const Params& p, F&& f) {
  const auto matches = [&](int64_t kernel, int64_t stride) {
    return p.h.kernel == kernel && p.w.kernel == kernel && p.h.stride == stride &&
           p.w.stride == stride && p.h.dilation == 1 && p.w.dilation == 1;
  };
  const auto call = [&]<int kK, int kS>() {
    if (matches(kK, kS)) f.template operator()<kK, kS>();
    return matches(kK, kS);
  };
  return call.template operator()<2, 2>() || call.template operator()<3, 2>() ||
         call.template operator()<3, 1>() || call.template operator()<4, 1>();
}

// One thread's share of planes cut into strips: a column, and kStrip rows from `first` on.
struct Strip {
  int64_t plane;
  int first, column;

  PYOPS_HOST_DEVICE Strip(uint32_t thread, int64_t height, int64_t width) {
    const auto columns = static_cast<uint32_t>(width);
    const auto strips = static_cast<uint32_t>((height + kStrip - 1) / kStrip);
    const uint32_t rest = thread / columns;
    column = static_cast<int>(thread % columns);
    first = static_cast<int>(rest % strips) * kStrip;
    plane = rest / strips;
  }
};

template <class T, bool kTaps, int kK, int kS>
PYOPS_HOST_DEVICE inline void pool_strip(const MaxPool2dParams& p, uint32_t thread) {
  constexpr int kRows = (kStrip - 1) * kS + kK;
  const Strip strip(thread, p.oh, p.ow);
  const int height = static_cast<int>(p.h.size), width = static_cast<int>(p.w.size);
  const int top = strip.first * kS - static_cast<int>(p.h.padding);
  const int left = strip.column * kS - static_cast<int>(p.w.padding);
  const T* x = static_cast<const T*>(p.x) + strip.plane * height * width;
  T rows[kRows][kK];
  PYOPS_UNROLL for (int q = 0; q < kRows; ++q) {
    PYOPS_UNROLL for (int k = 0; k < kK; ++k) {
      const int i = top + q, j = left + k;
      const bool inside = i >= 0 && i < height && j >= 0 && j < width;
      rows[q][k] = inside ? x[i * width + j] : static_cast<T>(kLowest<T>);
    }
  }
  const int oh = static_cast<int>(p.oh);
  const int64_t out = strip.plane * p.oh * p.ow + strip.column;
  PYOPS_UNROLL for (int r = 0; r < kStrip; ++r) {
    const int row = strip.first + r;
    if (row >= oh) break;
    // The first tap inside: what a window of nothing but -inf answers with.
    const int first_row = -(top + r * kS) > 0 ? -(top + r * kS) : 0,
              first_col = -left > 0 ? -left : 0;
    Maximum<acc_t<T>, int> best{kLowest<T>, first_row * kK + first_col};
    PYOPS_UNROLL for (int t = 0; t < kK * kK; ++t) {
      best.take(static_cast<acc_t<T>>(rows[r * kS + t / kK][t % kK]), t);
    }
    const int64_t at = out + row * p.ow;
    static_cast<T*>(p.y)[at] = static_cast<T>(best.value);
    if (kTaps) static_cast<uint8_t*>(p.where)[at] = static_cast<uint8_t>(best.where);
  }
}

// The gradient of a column of kStrip inputs. Each output over them is read once, and added to the
// one it names; every input so receives its windows in their order.
template <class T, int kK, int kS>
PYOPS_HOST_DEVICE inline void gather_strip(const MaxPool2dBackwardParams& p, uint32_t thread) {
  constexpr int kRows = (kStrip + kK - 2) / kS + 1, kCols = (kK - 1) / kS + 1;
  const Strip strip(thread, p.h.size, p.w.size);
  const int oh = static_cast<int>(p.oh), ow = static_cast<int>(p.ow);
  const int down = strip.first + static_cast<int>(p.h.padding);
  const int across = strip.column + static_cast<int>(p.w.padding);
  const int top = down < kK ? 0 : (down - kK) / kS + 1;
  const int left = across < kK ? 0 : (across - kK) / kS + 1;
  const int64_t plane = strip.plane * p.oh * p.ow;
  const T* grad_y = static_cast<const T*>(p.grad_y) + plane;
  const uint8_t* taps = static_cast<const uint8_t*>(p.where) + plane;
  T grads[kRows][kCols];
  int tap[kRows][kCols];
  PYOPS_UNROLL for (int q = 0; q < kRows; ++q) {
    PYOPS_UNROLL for (int k = 0; k < kCols; ++k) {
      const bool inside = top + q < oh && left + k < ow;
      const int at = (top + q) * ow + left + k;
      grads[q][k] = inside ? grad_y[at] : static_cast<T>(0);
      tap[q][k] = inside ? taps[at] : 0;
    }
  }
  acc_t<T> sums[kStrip] = {};
  PYOPS_UNROLL for (int q = 0; q < kRows; ++q) {
    PYOPS_UNROLL for (int k = 0; k < kCols; ++k) {
      const bool same_column = (left + k) * kS + tap[q][k] % kK == across;
      const int row = (top + q) * kS + tap[q][k] / kK - down;
      PYOPS_UNROLL for (int r = 0; r < kStrip; ++r) {
        const bool named = same_column && row == r;
        sums[r] += named ? static_cast<acc_t<T>>(grads[q][k]) : acc_t<T>(0);
      }
    }
  }
  T* grad_x = static_cast<T*>(p.grad_x) + strip.plane * p.h.size * p.w.size + strip.column;
  PYOPS_UNROLL for (int r = 0; r < kStrip; ++r) {
    const int64_t row = strip.first + r;
    if (row < p.h.size) grad_x[row * p.w.size] = static_cast<T>(sums[r]);
  }
}

template <class T, bool kTaps, int kK, int kS>
PYOPS_HOST_DEVICE inline void pool_pixel(const MaxPool2dParams& p, uint32_t thread) {
  constexpr int kWidth = Pack<T>::kWidth;
  const PackOfPixel out(thread, p.oh, p.ow, p.c, kWidth);
  const int height = static_cast<int>(p.h.size), width = static_cast<int>(p.w.size);
  const int top = out.row * kS - static_cast<int>(p.h.padding);
  const int left = out.column * kS - static_cast<int>(p.w.padding);
  const T* image = static_cast<const T*>(p.x) + out.image * p.h.size * p.w.size * p.c + out.channel;
  const int first_row = top < 0 ? -top : 0, first_col = left < 0 ? -left : 0;
  Maximum<acc_t<T>, int> best[kWidth];
  PYOPS_UNROLL for (int v = 0; v < kWidth; ++v) {
    best[v] = {kLowest<T>, first_row * kK + first_col};
  }
  PYOPS_UNROLL for (int t = 0; t < kK * kK; ++t) {
    const int i = top + t / kK, j = left + t % kK;
    if (i < 0 || i >= height || j < 0 || j >= width) continue;
    const Pack<T> pack = load_pack(image + (i * width + j) * p.c);
    PYOPS_UNROLL for (int v = 0; v < kWidth; ++v) {
      best[v].take(static_cast<acc_t<T>>(pack.at[v]), t);
    }
  }
  const int64_t at = ((out.image * p.oh + out.row) * p.ow + out.column) * p.c + out.channel;
  Pack<T> y;
  PackOfBytes<T> taps;
  PYOPS_UNROLL for (int v = 0; v < kWidth; ++v) {
    y.at[v] = static_cast<T>(best[v].value);
    taps.at[v] = static_cast<uint8_t>(best[v].where);
  }
  store_pack(static_cast<T*>(p.y) + at, y);
  if (kTaps) *reinterpret_cast<PackOfBytes<T>*>(static_cast<uint8_t*>(p.where) + at) = taps;
}

template <class T, int kK, int kS>
PYOPS_HOST_DEVICE inline void gather_pixel(const MaxPool2dBackwardParams& p, uint32_t thread) {
  constexpr int kWidth = Pack<T>::kWidth, kCover = (kK - 1) / kS + 1;
  const PackOfPixel in(thread, p.h.size, p.w.size, p.c, kWidth);
  const int down = in.row + static_cast<int>(p.h.padding);
  const int across = in.column + static_cast<int>(p.w.padding);
  const int top = down < kK ? 0 : (down - kK) / kS + 1;
  const int left = across < kK ? 0 : (across - kK) / kS + 1;
  acc_t<T> sums[kWidth] = {};
  PYOPS_UNROLL for (int t = 0; t < kCover * kCover; ++t) {
    const int oh = top + t / kCover, ow = left + t % kCover;
    const int row_tap = down - oh * kS, col_tap = across - ow * kS;
    if (row_tap < 0 || col_tap < 0 || oh >= p.oh || ow >= p.ow) continue;
    const int64_t at = ((in.image * p.oh + oh) * p.ow + ow) * p.c + in.channel;
    const auto taps =
        *reinterpret_cast<const PackOfBytes<T>*>(static_cast<const uint8_t*>(p.where) + at);
    const Pack<T> grads = load_pack(static_cast<const T*>(p.grad_y) + at);
    PYOPS_UNROLL for (int v = 0; v < kWidth; ++v) {
      const bool named = taps.at[v] == row_tap * kK + col_tap;
      sums[v] += named ? static_cast<acc_t<T>>(grads.at[v]) : acc_t<T>(0);
    }
  }
  Pack<T> grad_x;
  PYOPS_UNROLL for (int v = 0; v < kWidth; ++v) grad_x.at[v] = static_cast<T>(sums[v]);
  const int64_t at = ((in.image * p.h.size + in.row) * p.w.size + in.column) * p.c + in.channel;
  store_pack(static_cast<T*>(p.grad_x) + at, grad_x);
}

// Height and width of what a call writes, over which its threads are laid.
struct Extent {
  int64_t height, width;
};
inline Extent written(const MaxPool2dParams& p) { return {p.oh, p.ow}; }
inline Extent written(const MaxPool2dBackwardParams& p) { return {p.h.size, p.w.size}; }

// What was allocated for the call is aligned; what came may be a part of something larger.
inline bool is_aligned(const MaxPool2dParams& p) { return is_pack_aligned(p.x); }
inline bool is_aligned(const MaxPool2dBackwardParams& p) {
  return is_pack_aligned(p.grad_y) && is_pack_aligned(p.where);
}

template <class Params>
int64_t strip_threads(const Params& p) {
  const Extent out = written(p);
  return p.n * p.c * ((out.height + kStrip - 1) / kStrip) * out.width;
}

template <class Params>
int64_t pixel_threads(const Params& p) {
  const Extent out = written(p);
  return p.n * out.height * out.width * (p.c / pack_width(p.dtype));
}

// A thread finds its share, and its place in a plane, with 32 bits.
template <class Params>
bool is_square(const Params& p, int64_t threads) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  return p.argmax != Argmax::kIndex && with_square_window(p, []<int, int>() {}) &&
         threads <= kMost && p.h.size * p.w.size <= kMost && p.oh * p.ow <= kMost;
}

template <class Params>
bool suits_strips(const Params& p) {
  return !p.channels_last && is_square(p, strip_threads(p));
}
inline constexpr const char* kSuitsStrips =
    "planes of rows; windows of 2 or 3 by stride 2, or 3 or 4 by stride 1; no indices";

template <class Params>
bool suits_channels(const Params& p) {
  return p.channels_last && p.c % pack_width(p.dtype) == 0 && is_square(p, pixel_threads(p)) &&
         is_aligned(p);
}
inline constexpr const char* kSuitsChannels =
    "channels last, in multiples of 16 aligned bytes; the same windows; no indices";

}  // namespace pyops
