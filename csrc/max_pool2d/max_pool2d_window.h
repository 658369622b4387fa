// Any window by coordinates of 32 bits: what one thread of the CUDA kernels computes that are told
// its size when they run. Planes are walked in strips as those of max_pool2d_square.h, a row's
// maximum taken once for all outputs of the strip; with channels last a thread has sixteen bytes of
// channels. Of large windows in planes that hardly overlap a warp takes one at a time.
#pragma once

#include "max_pool2d/max_pool2d_square.h"

namespace pyops {

template <class T>
using TapMaximum = Maximum<acc_t<T>, int>;  // by the number of the tap

// The axes of a call, and what it keeps of a maximum.
struct Windows32 {
  ShortPoolAxis h, w;
  Argmax argmax;

  template <class Params>
  PYOPS_HOST_DEVICE explicit Windows32(const Params& p)
      : h(shortened(p.h)), w(shortened(p.w)), argmax(p.argmax) {}

  // Of a window of nothing but -inf, or of nothing.
  PYOPS_HOST_DEVICE int first_tap(int row, int column) const {
    return h.window(row).first_tap * w.kernel + w.window(column).first_tap;
  }

  PYOPS_HOST_DEVICE void store(void* where, int64_t at, int row, int column, int tap) const {
    if (argmax == Argmax::kTap) static_cast<uint8_t*>(where)[at] = static_cast<uint8_t>(tap);
    if (argmax != Argmax::kIndex) return;
    const int64_t i = h.start(row) + tap / w.kernel * h.dilation;
    const int64_t j = w.start(column) + tap % w.kernel * w.dilation;
    static_cast<int64_t*>(where)[at] = i * w.size + j;
  }

  PYOPS_HOST_DEVICE int load(const void* where, int64_t at) const {
    return argmax == Argmax::kTap ? static_cast<const uint8_t*>(where)[at]
                                  : static_cast<int>(static_cast<const int64_t*>(where)[at]);
  }
  // What load() gives where tap (y, x) of a window, at position (i, j), is the maximum; -1 where y
  // is none.
  PYOPS_HOST_DEVICE int code(int y, int x, int i, int j) const {
    if (y < 0) return -1;
    return argmax == Argmax::kTap ? y * w.kernel + x : i * w.size + j;
  }

  // The same of a pack of channels.
  template <class T>
  PYOPS_HOST_DEVICE void store(void* where, int64_t at, int row, int column,
                               const TapMaximum<T> (&best)[Pack<T>::kWidth]) const {
    PackOfBytes<T> taps;
    PYOPS_UNROLL for (int v = 0; v < Pack<T>::kWidth; ++v) {
      taps.at[v] = static_cast<uint8_t>(best[v].where);
      if (argmax == Argmax::kIndex) store(where, at + v, row, column, best[v].where);
    }
    if (argmax != Argmax::kTap) return;
    *reinterpret_cast<PackOfBytes<T>*>(static_cast<uint8_t*>(where) + at) = taps;
  }
  template <class T>
  PYOPS_HOST_DEVICE void load(const void* where, int64_t at, int (&codes)[Pack<T>::kWidth]) const {
    PackOfBytes<T> taps{};
    if (argmax == Argmax::kTap) {
      taps = *reinterpret_cast<const PackOfBytes<T>*>(static_cast<const uint8_t*>(where) + at);
    }
    PYOPS_UNROLL for (int v = 0; v < Pack<T>::kWidth; ++v) {
      codes[v] = argmax == Argmax::kTap ? taps.at[v] : load(where, at + v);
    }
  }
};

template <class T>
PYOPS_HOST_DEVICE inline void pool_window_strip(const MaxPool2dParams& p, uint32_t thread) {
  const Windows32 windows(p);
  const ShortPoolAxis &h = windows.h, &w = windows.w;
  const Strip strip(thread, p.oh, p.ow);
  const int beyond = static_cast<int>(p.oh), top = h.start(strip.first);
  // Behind the last row that again, which is not stored.
  const auto row_at = [&](int r) {
    return strip.first + r < beyond ? strip.first + r : beyond - 1;
  };
  const T* x = static_cast<const T*>(p.x) + strip.plane * h.size * w.size;
  const auto cols = w.window(strip.column);
  TapMaximum<T> best[kStrip];
  PYOPS_UNROLL for (int r = 0; r < kStrip; ++r) {
    best[r] = {kLowest<T>, windows.first_tap(row_at(r), strip.column)};
  }
  const int end = h.window(row_at(kStrip - 1)).end;
  for (int i = top > 0 ? top : 0; i < end; ++i) {
    int taps[kStrip];
    bool any = false;
    PYOPS_UNROLL for (int r = 0; r < kStrip; ++r) {
      taps[r] = h.tap_at(row_at(r), i);
      any |= taps[r] >= 0;
    }
    if (!any) continue;
    TapMaximum<T> row{kLowest<T>, cols.first_tap};
    for (int j = cols.begin, tap = cols.first_tap; j < cols.end; j += w.dilation, ++tap) {
      row.take(static_cast<acc_t<T>>(x[i * w.size + j]), tap);
    }
    PYOPS_UNROLL for (int r = 0; r < kStrip; ++r) {
      if (taps[r] >= 0) best[r].take(row.value, taps[r] * w.kernel + row.where);
    }
  }
  const int64_t out = strip.plane * p.oh * p.ow + strip.column;
  PYOPS_UNROLL for (int r = 0; r < kStrip; ++r) {
    const int row = strip.first + r;
    if (row >= beyond) break;
    const int64_t at = out + row * p.ow;
    static_cast<T*>(p.y)[at] = static_cast<T>(best[r].value);
    windows.store(p.where, at, row, strip.column, best[r].where);
  }
}

// The gradient of a column of kStrip inputs, from the outputs over them in their order.
template <class T>
PYOPS_HOST_DEVICE inline void gather_window_strip(const MaxPool2dBackwardParams& p,
                                                  uint32_t thread) {
  const Windows32 windows(p);
  const ShortPoolAxis &h = windows.h, &w = windows.w;
  const Strip strip(thread, h.size, w.size);
  const int oh = static_cast<int>(p.oh), ow = static_cast<int>(p.ow);
  const int64_t plane = strip.plane * p.oh * p.ow;
  const int end = h.covering(strip.first + kStrip - 1, oh).end;
  const auto cols = w.covering(strip.column, ow);
  acc_t<T> sums[kStrip] = {};
  for (int row = h.covering(strip.first, oh).begin; row < end; ++row) {
    int taps[kStrip];
    PYOPS_UNROLL for (int r = 0; r < kStrip; ++r) taps[r] = h.tap_at(row, strip.first + r);
    for (int column = cols.begin; column < cols.end; ++column) {
      const int tap = w.tap_at(column, strip.column);
      if (tap < 0) continue;
      const int64_t at = plane + row * ow + column;
      const acc_t<T> grad = static_cast<acc_t<T>>(static_cast<const T*>(p.grad_y)[at]);
      const int where = windows.load(p.where, at);
      PYOPS_UNROLL for (int r = 0; r < kStrip; ++r) {
        const bool named = where == windows.code(taps[r], tap, strip.first + r, strip.column);
        sums[r] += named ? grad : acc_t<T>(0);
      }
    }
  }
  T* grad_x = static_cast<T*>(p.grad_x) + strip.plane * h.size * w.size + strip.column;
  PYOPS_UNROLL for (int r = 0; r < kStrip; ++r) {
    const int64_t row = strip.first + r;
    if (row < h.size) grad_x[row * w.size] = static_cast<T>(sums[r]);
  }
}

template <class T>
PYOPS_HOST_DEVICE inline void pool_window_pixel(const MaxPool2dParams& p, uint32_t thread) {
  constexpr int kWidth = Pack<T>::kWidth;
  const Windows32 windows(p);
  const ShortPoolAxis &h = windows.h, &w = windows.w;
  const PackOfPixel out(thread, p.oh, p.ow, p.c, kWidth);
  const T* image = static_cast<const T*>(p.x) + out.image * h.size * w.size * p.c + out.channel;
  const auto rows = h.window(out.row), cols = w.window(out.column);
  TapMaximum<T> best[kWidth];
  PYOPS_UNROLL for (int v = 0; v < kWidth; ++v) {
    best[v] = {kLowest<T>, rows.first_tap * w.kernel + cols.first_tap};
  }
  for (int i = rows.begin, y = rows.first_tap; i < rows.end; i += h.dilation, ++y) {
    for (int j = cols.begin, x = cols.first_tap; j < cols.end; j += w.dilation, ++x) {
      const Pack<T> pack = load_pack(image + (i * w.size + j) * p.c);
      PYOPS_UNROLL for (int v = 0; v < kWidth; ++v) {
        best[v].take(static_cast<acc_t<T>>(pack.at[v]), y * w.kernel + x);
      }
    }
  }
  const int64_t at = ((out.image * p.oh + out.row) * p.ow + out.column) * p.c + out.channel;
  Pack<T> y;
  PYOPS_UNROLL for (int v = 0; v < kWidth; ++v) y.at[v] = static_cast<T>(best[v].value);
  store_pack(static_cast<T*>(p.y) + at, y);
  windows.store<T>(p.where, at, out.row, out.column, best);
}

template <class T>
PYOPS_HOST_DEVICE inline void gather_window_pixel(const MaxPool2dBackwardParams& p,
                                                  uint32_t thread) {
  constexpr int kWidth = Pack<T>::kWidth;
  const Windows32 windows(p);
  const ShortPoolAxis &h = windows.h, &w = windows.w;
  const PackOfPixel in(thread, h.size, w.size, p.c, kWidth);
  const auto rows = h.covering(in.row, static_cast<int>(p.oh));
  const auto cols = w.covering(in.column, static_cast<int>(p.ow));
  acc_t<T> sums[kWidth] = {};
  for (int row = rows.begin; row < rows.end; ++row) {
    for (int column = cols.begin; column < cols.end; ++column) {
      const int y = h.tap_at(row, in.row), x = w.tap_at(column, in.column);
      if (y < 0 || x < 0) continue;
      const int64_t at = ((in.image * p.oh + row) * p.ow + column) * p.c + in.channel;
      const Pack<T> grads = load_pack(static_cast<const T*>(p.grad_y) + at);
      const int here = windows.code(y, x, in.row, in.column);
      int codes[kWidth];
      windows.load<T>(p.where, at, codes);
      PYOPS_UNROLL for (int v = 0; v < kWidth; ++v) {
        const bool named = codes[v] == here;
        sums[v] += named ? static_cast<acc_t<T>>(grads.at[v]) : acc_t<T>(0);
      }
    }
  }
  Pack<T> grad_x;
  PYOPS_UNROLL for (int v = 0; v < kWidth; ++v) grad_x.at[v] = static_cast<T>(sums[v]);
  const int64_t at = ((in.image * h.size + in.row) * w.size + in.column) * p.c + in.channel;
  store_pack(static_cast<T*>(p.grad_x) + at, grad_x);
}

inline constexpr int kLanes = 32;

// The maximum of what `lane` takes of window `o`, counted in the order of y: every 32nd tap.
template <class T>
PYOPS_HOST_DEVICE inline TapMaximum<T> pool_window_lane(const MaxPool2dParams& p, int64_t o,
                                                        int lane) {
  const Windows32 windows(p);
  const ShortPoolAxis &h = windows.h, &w = windows.w;
  const int64_t area = p.oh * p.ow, plane = o / area;
  const int place = static_cast<int>(o % area), width = static_cast<int>(p.ow);
  const auto rows = h.window(place / width), cols = w.window(place % width);
  const T* x = static_cast<const T*>(p.x) + plane * h.size * w.size;
  const auto taps = [](const auto& axis, const auto& window) {
    return window.begin < window.end ? (window.end - window.begin - 1) / axis.dilation + 1 : 0;
  };
  const int high = taps(h, rows), wide = taps(w, cols);
  const int first = rows.first_tap * w.kernel + cols.first_tap;
  TapMaximum<T> best{kLowest<T>, first};
  if (wide == 0) return best;
  int row = lane / wide, column = lane % wide;
  while (row < high) {
    const int i = rows.begin + row * h.dilation, j = cols.begin + column * w.dilation;
    best.take(static_cast<acc_t<T>>(x[i * w.size + j]), first + row * w.kernel + column);
    column += kLanes % wide;
    row += kLanes / wide + (column >= wide ? 1 : 0);
    if (column >= wide) column -= wide;
  }
  return best;
}

// Of two parts of a window, whose taps may lie among each other: the last NaN, else the first of
// the largest.
template <class Acc>
PYOPS_HOST_DEVICE inline Maximum<Acc, int> merged(const Maximum<Acc, int>& a,
                                                  const Maximum<Acc, int>& b) {
  const bool a_is_nan = a.value != a.value, b_is_nan = b.value != b.value;
  if (a_is_nan || b_is_nan) {
    const bool takes_b = b_is_nan && (!a_is_nan || b.where > a.where);
    return takes_b ? b : a;
  }
  return b.value > a.value || (b.value == a.value && b.where < a.where) ? b : a;
}

template <class T>
PYOPS_HOST_DEVICE inline void store_window(const MaxPool2dParams& p, int64_t o,
                                           const TapMaximum<T>& best) {
  static_cast<T*>(p.y)[o] = static_cast<T>(best.value);
  const int place = static_cast<int>(o % (p.oh * p.ow)), width = static_cast<int>(p.ow);
  Windows32(p).store(p.where, o, place / width, place % width, best.where);
}

// Everything within a plane is counted by 32 bits, and so are the threads.
template <class Params>
bool suits_windows(const Params& p) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const bool packs = p.c % pack_width(p.dtype) == 0 && is_aligned(p);
  return (!p.channels_last || packs) && fits_short(p.h) && fits_short(p.w) &&
         p.h.kernel * p.w.kernel <= kMost && p.h.size * p.w.size <= kMost && p.oh * p.ow <= kMost &&
         (p.channels_last ? pixel_threads(p) : strip_threads(p)) <= kMost;
}
inline constexpr const char* kSuitsWindows =
    "planes of rows, or channels last in multiples of 16 aligned bytes; coordinates of 32 bits";

// Windows that leave each thread much to read, and little of it to share.
inline bool suits_teams(const MaxPool2dParams& p) {
  constexpr int64_t kLeastTaps = 64;
  return !p.channels_last && p.h.kernel * p.w.kernel >= kLeastTaps &&
         2 * p.h.stride >= p.h.kernel && 2 * p.w.stride >= p.w.kernel && suits_windows(p);
}
inline constexpr const char* kSuitsTeams =
    "planes of rows; windows of at least 64 taps, by at least half of them; coordinates of 32 bits";

}  // namespace pyops
