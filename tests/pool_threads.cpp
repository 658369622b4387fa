// What the threads of the max pooling kernels of CUDA compute, one after the other on the CPU; and
// the arithmetic of windows they share with everybody.
#include <algorithm>

#include "core/pool_window.h"
#include "max_pool2d/max_pool2d_window.h"

using namespace pyops;

namespace {

enum Way { kElement, kStrips, kChannels, kWindows, kTeams };

// n, c, h, w, oh, ow, then kernel, stride, padding, dilation of rows and of columns.
template <class Params>
Params params_of(const int64_t* s, int dtype, int argmax, int channels_last) {
  Params p{};
  p.dtype = static_cast<Dtype>(dtype);
  p.argmax = static_cast<Argmax>(argmax);
  p.channels_last = channels_last != 0;
  p.n = s[0];
  p.c = s[1];
  p.h = {s[2], s[6], s[8], s[10], s[12]};
  p.w = {s[3], s[7], s[9], s[11], s[13]};
  p.oh = s[4];
  p.ow = s[5];
  return p;
}

template <class Params>
bool takes(Way way, const Params& p) {
  if (way == kWindows) return suits_windows(p);
  return way == kElement || (way == kStrips ? suits_strips(p) : suits_channels(p));
}

template <class Params>
int64_t threads(Way way, const Params& p) {
  const bool strips = way == kStrips || (way == kWindows && !p.channels_last);
  return strips ? strip_threads(p) : pixel_threads(p);
}

template <class Where>
void pool_elements(const MaxPool2dParams& p) {
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    for (int64_t e = 0; e < p.n * p.c * p.oh * p.ow; ++e) {
      pool_element<T, Where>(p, e / (p.oh * p.ow), e % (p.oh * p.ow));
    }
  });
}

template <bool kTaps>
void pool_square(Way way, const MaxPool2dParams& p) {
  dispatch_dtype<kTileTypes>(p.dtype, [&]<class T>(T) {
    with_square_window(p, [&]<int kK, int kS>() {
      for (int64_t t = 0; t < threads(way, p); ++t) {
        const auto thread = static_cast<uint32_t>(t);
        way == kStrips ? pool_strip<T, kTaps, kK, kS>(p, thread)
                       : pool_pixel<T, kTaps, kK, kS>(p, thread);
      }
    });
  });
}

void pool_windows(const MaxPool2dParams& p) {
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    for (int64_t t = 0; t < threads(kWindows, p); ++t) {
      const auto thread = static_cast<uint32_t>(t);
      p.channels_last ? pool_window_pixel<T>(p, thread) : pool_window_strip<T>(p, thread);
    }
  });
}

void pool_by_teams(const MaxPool2dParams& p) {
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    for (int64_t o = 0; o < p.n * p.c * p.oh * p.ow; ++o) {
      TapMaximum<T> parts[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) parts[lane] = pool_window_lane<T>(p, o, lane);
      for (int apart = kLanes / 2; apart > 0; apart /= 2) {
        TapMaximum<T> before[kLanes];
        std::copy(parts, parts + kLanes, before);
        for (int lane = 0; lane < kLanes; ++lane) {
          parts[lane] = merged(before[lane], before[lane ^ apart]);
        }
      }
      store_window<T>(p, o, parts[0]);
    }
  });
}

void gather_windows(const MaxPool2dBackwardParams& p) {
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    for (int64_t t = 0; t < threads(kWindows, p); ++t) {
      const auto thread = static_cast<uint32_t>(t);
      p.channels_last ? gather_window_pixel<T>(p, thread) : gather_window_strip<T>(p, thread);
    }
  });
}

template <class Where>
void gather_elements(const MaxPool2dBackwardParams& p) {
  const int64_t area = p.h.size * p.w.size;
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    for (int64_t e = 0; e < p.n * p.c * area; ++e) {
      gather_element<T, Where>(p, e / area, e % area / p.w.size, e % p.w.size);
    }
  });
}

void gather_square(Way way, const MaxPool2dBackwardParams& p) {
  dispatch_dtype<kTileTypes>(p.dtype, [&]<class T>(T) {
    with_square_window(p, [&]<int kK, int kS>() {
      for (int64_t t = 0; t < threads(way, p); ++t) {
        const auto thread = static_cast<uint32_t>(t);
        way == kStrips ? gather_strip<T, kK, kS>(p, thread) : gather_pixel<T, kK, kS>(p, thread);
      }
    });
  });
}

}  // namespace

extern "C" {

// False, and nothing done, where the kernels of `way` do not take the call.
int pool(int way, const int64_t* sizes, int dtype, int argmax, int channels_last, const void* x,
         void* y, void* where) {
  auto p = params_of<MaxPool2dParams>(sizes, dtype, argmax, channels_last);
  p.x = x;
  p.y = y;
  p.where = where;
  if (way == kTeams ? !suits_teams(p) : !takes(Way(way), p)) return 0;
  const bool taps = p.argmax == Argmax::kTap;
  if (way == kWindows) {
    pool_windows(p);
  } else if (way == kTeams) {
    pool_by_teams(p);
  } else if (way == kElement) {
    taps ? pool_elements<uint8_t>(p) : pool_elements<int64_t>(p);
  } else {
    taps ? pool_square<true>(Way(way), p) : pool_square<false>(Way(way), p);
  }
  return 1;
}

int gather(int way, const int64_t* sizes, int dtype, int argmax, int channels_last,
           const void* grad_y, const void* where, void* grad_x) {
  auto p = params_of<MaxPool2dBackwardParams>(sizes, dtype, argmax, channels_last);
  p.grad_y = grad_y;
  p.where = where;
  p.grad_x = grad_x;
  if (!takes(Way(way), p)) return 0;
  if (way == kWindows) {
    gather_windows(p);
  } else if (way != kElement) {
    gather_square(Way(way), p);
  } else if (p.argmax == Argmax::kTap) {
    gather_elements<uint8_t>(p);
  } else {
    gather_elements<int64_t>(p);
  }
  return 1;
}

int64_t pool_output_size(const int64_t* axis, int ceil_mode) {
  return PoolAxis{axis[0], axis[1], axis[2], axis[3], axis[4]}.output_size(ceil_mode != 0);
}

// windows: (outputs, 3) begin, end, first tap; taps: (outputs, size); covering: (size, 2).
int64_t pool_axis(const int64_t* axis, int64_t outputs, int64_t* windows, int64_t* taps,
                  int64_t* covering) {
  const PoolAxis a{axis[0], axis[1], axis[2], axis[3], axis[4]};
  for (int64_t o = 0; o < outputs; ++o) {
    const PoolWindow window = a.window(o);
    windows[3 * o] = window.begin;
    windows[3 * o + 1] = window.end;
    windows[3 * o + 2] = window.first_tap;
    for (int64_t i = 0; i < a.size; ++i) taps[o * a.size + i] = a.tap_at(o, i);
  }
  for (int64_t i = 0; i < a.size; ++i) {
    const PoolCovering span = a.covering(i, outputs);
    covering[2 * i] = span.begin;
    covering[2 * i + 1] = span.end;
  }
  return a.max_covering();
}
}
