// max_pool2d(relu(conv2d(x))) strip by strip: a few output rows of the convolution go to scratch
// that stays in the cache, and the pooling reads them there. Rows that two strips' windows share
// are computed twice.
//
// Planes are computed as pixels: maxima are those of whole vectors, and only they are turned back,
// of 2×2 windows a quarter of what a planar convolution would turn.
#pragma once

#include "conv2d/conv2d_simd.h"
#include "core/lanes_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// A strip of convolution rows and the maxima over its windows; kTaps: also where they come from.
template <class T, bool kTaps>
struct PoolStrip {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  const Conv2dPoolParams& p;
  bool pixels;  // rows are (count, ow, O), else (O, count, ow)
  const T* rows;
  int64_t first, count;  // convolution rows
  int64_t pooled;        // offset of the pooled image

  struct Maximum {
    V value = V::set1(kTaps ? -__builtin_inff() : 0);
    Lanes<Acc> offset{};

    void meet(V x, int64_t tap) {
      if constexpr (!kTaps) {  // the ReLU has left nothing below zero
        value = V::max_magnitude(x, value);
        return;
      }
      const auto wins = (x.v > value.v) | (x.v != x.v);
      offset = wins ? Lanes<Acc>{} + static_cast<lane_t<Acc>>(tap) : offset;
      value.v = wins ? x.v : value.v;
    }

    Lanes<Acc> tap() const {
      const auto passes = (value.v > 0) | (value.v != value.v);
      return passes ? offset : Lanes<Acc>{} + kNoTap;
    }
  };

  bool keeps_taps() const { return kTaps && p.offsets != nullptr; }

  void store(const Maximum& maximum, int64_t at, int n) const {
    maximum.value.store(static_cast<T*>(p.y) + at, n);
    if (keeps_taps()) store_taps(maximum.tap(), at, n);
  }

  void store_taps(const Lanes<Acc>& taps, int64_t at, int n) const {
    if (!p.wide_offsets) {  // kNoTap's last byte, which AVX2 would take for a number below 0
      return store_lanes<Acc>(taps & 0xff, static_cast<uint8_t*>(p.offsets) + at, n);
    }
    for (int i = 0; i < n; ++i) p.store_offset(at + i, static_cast<int32_t>(taps[i]));
  }

  // n windows of one pooled row from px on, which meet the taps that `cols` says.
  void planar_windows(int64_t channel, int64_t py, int64_t px, const PoolWindow& cols,
                      int n) const {
    const PoolWindow window = p.pool_h.window(py);
    Maximum maximum;
    int64_t ky = window.first_tap;
    for (int64_t oy = window.begin; oy < window.end; oy += p.pool_h.dilation, ++ky) {
      const T* row = rows + (channel * count + oy - first) * p.ow;
      int64_t kx = cols.first_tap;
      for (int64_t ox = cols.begin; ox < cols.end; ox += p.pool_w.dilation, ++kx) {
        maximum.meet(load_strided(row + ox, p.pool_w.stride, n), ky * p.pool_w.kernel + kx);
      }
    }
    store(maximum, pooled + (channel * p.pooled_h + py) * p.pooled_w + px, n);
  }

  void planar_row(int64_t channel, int64_t py) const {
    for (int64_t px = 0; px < p.pooled_w;) {
      const PoolWindow cols = p.pool_w.window(px);
      // Windows that no end of the row cuts go by the vector.
      const int64_t room = p.ow - p.pool_w.extent() + p.pool_w.padding;
      const int64_t whole = floor_div(room, p.pool_w.stride) + 1;
      const bool cut = cols.first_tap > 0 || px >= whole;
      const int n = cut ? 1 : static_cast<int>(std::min<int64_t>(V::kWidth, whole - px));
      planar_windows(channel, py, px, cols, n);
      px += n;
    }
  }

  // n channels of one window.
  Maximum pixel_window(const PoolWindow& window, const PoolWindow& cols, int64_t channel,
                       int n) const {
    Maximum maximum;
    int64_t ky = window.first_tap;
    for (int64_t oy = window.begin; oy < window.end; oy += p.pool_h.dilation, ++ky) {
      int64_t kx = cols.first_tap;
      for (int64_t ox = cols.begin; ox < cols.end; ox += p.pool_w.dilation, ++kx) {
        const T* pixel = rows + ((oy - first) * p.ow + ox) * p.o + channel;
        maximum.meet(V::load(pixel, n), ky * p.pool_w.kernel + kx);
      }
    }
    return maximum;
  }

  void pixel_row(int64_t py) const {
    const PoolWindow window = p.pool_h.window(py);
    for (int64_t px = 0; px < p.pooled_w; ++px) {
      const PoolWindow cols = p.pool_w.window(px);
      for (int64_t channel = 0; channel < p.o; channel += V::kWidth) {
        const int n = static_cast<int>(std::min<int64_t>(V::kWidth, p.o - channel));
        store(pixel_window(window, cols, channel, n),
              pooled + (py * p.pooled_w + px) * p.o + channel, n);
      }
    }
  }

  // Pooled positions [q, q + n) of all planes, n ≤ kWidth.
  void turned_windows(int64_t q, int n) const {
    PoolWindow window[V::kWidth], cols[V::kWidth];
    for (int i = 0; i < n; ++i) {
      window[i] = p.pool_h.window((q + i) / p.pooled_w);
      cols[i] = p.pool_w.window((q + i) % p.pooled_w);
    }
    const int64_t plane = p.pooled_h * p.pooled_w;
    for (int64_t channel = 0; channel < p.o; channel += V::kWidth) {
      const int channels = static_cast<int>(std::min<int64_t>(V::kWidth, p.o - channel));
      V values[V::kWidth], taps[V::kWidth];
      for (int i = 0; i < V::kWidth; ++i) {
        const Maximum maximum =
            i < n ? pixel_window(window[i], cols[i], channel, channels) : Maximum{};
        values[i] = maximum.value;
        if (keeps_taps()) taps[i].v = (decltype(V::v))maximum.tap();
      }
      const int64_t at = pooled + channel * plane + q;
      transpose(values);
      for (int i = 0; i < channels; ++i) {
        values[i].store(static_cast<T*>(p.y) + at + i * plane, n);
      }
      if (!keeps_taps()) continue;
      transpose(taps);
      for (int i = 0; i < channels; ++i) {
        store_taps((Lanes<Acc>)taps[i].v, at + i * plane, n);
      }
    }
  }

  // Pooled rows [py0, py1).
  void pool(int64_t py0, int64_t py1) const {
    if (pixels && !p.channels_last) {
      if constexpr (std::is_same_v<Acc, float>) {
        const int64_t end = py1 * p.pooled_w;
        for (int64_t q = py0 * p.pooled_w; q < end; q += V::kWidth) {
          turned_windows(q, static_cast<int>(std::min<int64_t>(V::kWidth, end - q)));
        }
      }
      return;
    }
    for (int64_t py = py0; py < py1; ++py) {
      if (pixels) {
        pixel_row(py);
      } else {
        for (int64_t channel = 0; channel < p.o; ++channel) planar_row(channel, py);
      }
    }
  }
};

// Pooled rows of one strip: the convolution rows stay in half an L2, and every thread has work.
inline int64_t strip_rows(const Conv2dPoolParams& p, int64_t element_size) {
  constexpr int64_t kStripBytes = 640 << 10;
  const int64_t rows = kStripBytes / (p.o * p.ow * element_size);
  const int64_t fitting =
      std::clamp<int64_t>((rows - p.pool_h.extent()) / p.pool_h.stride + 1, 1, p.pooled_h);
  const int64_t strips =
      std::max(ceil_div(p.pooled_h, fitting), ceil_div(static_cast<int64_t>(num_threads()), p.n));
  return ceil_div(p.pooled_h, strips);
}

// Convolution rows of planes as pixels. Sums are float32.
template <class T>
class TurnedRows {
 public:
  static bool pays(const Conv2dParams& p) {
    return !p.channels_last && p.groups == 1 && p.o >= Vec<float>::kWidth;
  }

  // `rows` of them at most at once.
  TurnedRows(const Conv2dParams& p, const T* weight, int64_t rows)
      : p_(p), weight_(weight), band_(p.c * p.w * std::min(p.h, reach(rows))) {}

  static void turn_weight(const Conv2dParams& p, T* weight) {
    to_pixels<false>(static_cast<const T*>(p.weight), static_cast<const T*>(nullptr), p.o, p.c,
                     p.kh * p.kw, weight);
  }

  // Rows [first, first + count) of image n. What they see is an image of its own.
  void operator()(int64_t n, int64_t first, int64_t count, T* y) const {
    const int64_t start = first * p_.stride_h - p_.padding_h;
    const int64_t begin = std::clamp<int64_t>(start, 0, p_.h - 1);
    const int64_t end = std::clamp<int64_t>(start + reach(count), begin + 1, p_.h);
    turn_run<false>(static_cast<const T*>(p_.x), static_cast<const T*>(nullptr), p_.c, p_.h * p_.w,
                    (n * p_.c * p_.h + begin) * p_.w, (end - begin) * p_.w, band_.get());
    Conv2dParams band = p_;
    band.channels_last = true;
    band.x = band_.get(), band.weight = weight_;
    band.h = end - begin, band.padding_h = begin - start;
    forward_rows(band, 0, 1, 0, count, y);
  }

 private:
  // Rows of the image that `rows` of the convolution see.
  int64_t reach(int64_t rows) const {
    return (rows - 1) * p_.stride_h + (p_.kh - 1) * p_.dilation_h + 1;
  }

  const Conv2dParams& p_;
  const T* const weight_;
  const Scratch<T> band_;
};

// By make_rows(most)(n, first, count, rows), which computes up to `most` convolution rows, of
// pixels or of planes, for one thread.
template <class T, bool kTaps, class MakeRows>
void pool_strips(const Conv2dPoolParams& p, bool pixels, const MakeRows& make_rows) {
  const int64_t pooled_rows = strip_rows(p, sizeof(T)), strips = ceil_div(p.pooled_h, pooled_rows);
  const int64_t bound = (pooled_rows - 1) * p.pool_h.stride + p.pool_h.extent() + 1;
  const int64_t most = std::min(bound, p.oh);
  parallel_for(0, p.n * strips, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> rows(most * p.ow * p.o);
    const auto forward = make_rows(most);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / strips, py0 = task % strips * pooled_rows;
      const int64_t py1 = std::min(p.pooled_h, py0 + pooled_rows);
      // Even, so that Winograd's tiles are those of the whole image.
      const int64_t first = std::clamp<int64_t>(p.pool_h.start(py0), 0, p.oh) / 2 * 2;
      const int64_t count = std::max<int64_t>(p.pool_h.window(py1 - 1).end - first, 0);
      if (count > 0) forward(n, first, count, rows.get());
      const int64_t pooled = n * p.o * p.pooled_h * p.pooled_w;
      PoolStrip<T, kTaps>{p, pixels, rows.get(), first, count, pooled}.pool(py0, py1);
    }
  });
}

template <class T, bool kTaps>
void conv2d_pool_forward(const Conv2dPoolParams& p) {
  if constexpr (std::is_same_v<acc_t<T>, float>) {
    if (TurnedRows<T>::pays(p)) {
      const Scratch<T> weight(p.o * p.c * p.kh * p.kw);
      TurnedRows<T>::turn_weight(p, weight.get());
      return pool_strips<T, kTaps>(
          p, true, [&](int64_t rows) { return TurnedRows<T>(p, weight.get(), rows); });
    }
  }
  pool_strips<T, kTaps>(p, p.channels_last, [&](int64_t) {
    return [&p](int64_t n, int64_t first, int64_t count, T* rows) {
      forward_rows(p, n, 1, first, count, rows);
    };
  });
}

inline void conv2d_pool_forward(const Conv2dPoolParams& params) {
  // A window with holes may lie beside the image: its maximum is none of the ReLU's results.
  const bool dense = params.pool_h.dilation == 1 && params.pool_w.dilation == 1;
  const bool with_taps = params.offsets != nullptr || !dense;
  dispatch_dtype<kKernelTypes>(params.dtype, [&](auto t) {
    using T = decltype(t);
    with_taps ? conv2d_pool_forward<T, true>(params) : conv2d_pool_forward<T, false>(params);
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
