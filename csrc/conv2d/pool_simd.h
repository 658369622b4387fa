// max_pool2d(relu(conv2d(x))) strip by strip: a few output rows of the convolution go to scratch
// that stays in the cache, and the pooling reads them there. Rows that two strips' windows share
// are computed twice.
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
  const T* rows;         // (O, count, ow), or (count, ow, O) with channels_last
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

  void store(const Maximum& maximum, int64_t at, int n) const {
    maximum.value.store(static_cast<T*>(p.y) + at, n);
    if (!kTaps || p.offsets == nullptr) return;
    const Lanes<Acc> tap = maximum.tap();
    lane_t<Acc> taps[V::kWidth];
    std::memcpy(taps, &tap, sizeof taps);
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

  void pixel_row(int64_t py) const {
    const PoolWindow window = p.pool_h.window(py);
    for (int64_t px = 0; px < p.pooled_w; ++px) {
      const PoolWindow cols = p.pool_w.window(px);
      for (int64_t channel = 0; channel < p.o; channel += V::kWidth) {
        const int n = static_cast<int>(std::min<int64_t>(V::kWidth, p.o - channel));
        Maximum maximum;
        int64_t ky = window.first_tap;
        for (int64_t oy = window.begin; oy < window.end; oy += p.pool_h.dilation, ++ky) {
          int64_t kx = cols.first_tap;
          for (int64_t ox = cols.begin; ox < cols.end; ox += p.pool_w.dilation, ++kx) {
            const T* pixel = rows + ((oy - first) * p.ow + ox) * p.o + channel;
            maximum.meet(V::load(pixel, n), ky * p.pool_w.kernel + kx);
          }
        }
        store(maximum, pooled + (py * p.pooled_w + px) * p.o + channel, n);
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

template <class T, bool kTaps>
void conv2d_pool_forward(const Conv2dPoolParams& p) {
  const int64_t pooled_rows = strip_rows(p, sizeof(T)), strips = ceil_div(p.pooled_h, pooled_rows);
  const int64_t rows_bound = (pooled_rows - 1) * p.pool_h.stride + p.pool_h.extent() + 1;
  parallel_for(0, p.n * strips, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> rows(std::min(rows_bound, p.oh) * p.ow * p.o);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / strips, py0 = task % strips * pooled_rows;
      const int64_t py1 = std::min(p.pooled_h, py0 + pooled_rows);
      // Even, so that Winograd's tiles are those of the whole image.
      const int64_t first = std::clamp<int64_t>(p.pool_h.start(py0), 0, p.oh) / 2 * 2;
      const int64_t count = std::max<int64_t>(p.pool_h.window(py1 - 1).end - first, 0);
      if (count > 0) forward_rows(p, n, 1, first, count, rows.get());
      const PoolStrip<T, kTaps> strip{p, rows.get(), first, count,
                                      n * p.o * p.pooled_h * p.pooled_w};
      for (int64_t py = py0; py < py1; ++py) {
        if (p.channels_last) {
          strip.pixel_row(py);
        } else {
          for (int64_t channel = 0; channel < p.o; ++channel) strip.planar_row(channel, py);
        }
      }
    }
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
