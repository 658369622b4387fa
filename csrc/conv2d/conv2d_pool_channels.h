// Pooling of a convolution's result, and its gradient, where channels come last: sixteen bytes of
// them a thread, by coordinates of 32 bits.
#pragma once

#include "conv2d/conv2d_element.h"
#include "conv2d/conv2d_images.h"

namespace pyops {

// How many images a launch takes of so many positions each, counted by their packs.
template <class Params>
int64_t images_of_packs(const Params& p, int64_t positions) {
  return images_below_2gi(positions * (p.o / pack_width(p.dtype)));
}
inline int64_t images_of_packs(const Conv2dPoolParams& p) {
  return images_of_packs(p, p.pooled_h * p.pooled_w);
}
inline int64_t images_of_packs(const Conv2dPoolBackwardParams& p) {
  return images_of_packs(p, p.oh * p.ow);
}

template <class Params>
bool is_pooled_by_packs(const Params& p, std::initializer_list<const void*> tensors) {
  return p.channels_last && p.o % pack_width(p.dtype) == 0 && fits_short(p.pool_h) &&
         fits_short(p.pool_w) && images_of_packs(p) > 0 &&
         std::all_of(tensors.begin(), tensors.end(), is_pack_aligned);
}
inline bool is_pooled_by_packs(const Conv2dPoolParams& p) {
  return is_pooled_by_packs(p, {p.offsets, p.y});
}
inline bool is_pooled_by_packs(const Conv2dPoolBackwardParams& p) {
  return is_pooled_by_packs(p, {p.offsets, p.grad_pooled, p.grad_y});
}
inline constexpr const char* kIsPooledByPacks =
    "channels last, in multiples of 16 bytes and aligned to them, images of fewer than 2^31 packs";

template <class T>
PYOPS_HOST_DEVICE inline void store_pooled(const Conv2dPoolParams& p, int64_t at,
                                           const WindowMaximum<T> (&best)[Pack<T>::kWidth]) {
  Pack<T> pooled;
  PackOfBytes<T> offsets;
  PYOPS_UNROLL for (int k = 0; k < Pack<T>::kWidth; ++k) {
    pooled.at[k] = best[k].value;
    offsets.at[k] = static_cast<uint8_t>(best[k].tap());
  }
  store_pack(static_cast<T*>(p.y) + at, pooled);
  if (p.offsets == nullptr) return;
  if (p.wide_offsets) {
    PYOPS_UNROLL for (int k = 0; k < Pack<T>::kWidth; ++k) p.store_offset(at + k, best[k].tap());
  } else {
    *reinterpret_cast<PackOfBytes<T>*>(static_cast<uint8_t*>(p.offsets) + at) = offsets;
  }
}

template <class T>
PYOPS_HOST_DEVICE inline void load_taps(const Conv2dPoolBackwardParams& p, int64_t at,
                                        int32_t (&taps)[Pack<T>::kWidth]) {
  if (p.wide_offsets) {
    PYOPS_UNROLL for (int k = 0; k < Pack<T>::kWidth; ++k) taps[k] = p.tap(at + k);
    return;
  }
  const auto offsets =
      *reinterpret_cast<const PackOfBytes<T>*>(static_cast<const uint8_t*>(p.offsets) + at);
  // Where the ReLU lets none pass that is 255, which is no tap.
  PYOPS_UNROLL for (int k = 0; k < Pack<T>::kWidth; ++k) taps[k] = offsets.at[k];
}

// The maxima of the packs load(y, x) of a window.
template <class T, class Load>
PYOPS_HOST_DEVICE inline void take_window(const Conv2dPoolParams& p, int py, int px,
                                          WindowMaximum<T> (&best)[Pack<T>::kWidth],
                                          const Load& load) {
  const ShortPoolAxis h = shortened(p.pool_h), w = shortened(p.pool_w);
  const auto rows = h.window(py), cols = w.window(px);
  for (int y = rows.begin, ty = rows.first_tap; y < rows.end; y += h.dilation, ++ty) {
    for (int x = cols.begin, tx = cols.first_tap; x < cols.end; x += w.dilation, ++tx) {
      const Pack<T> pack = load(y, x);
      PYOPS_UNROLL for (int k = 0; k < Pack<T>::kWidth; ++k) {
        best[k].take(pack.at[k], ty * w.kernel + tx);
      }
    }
  }
}

// Pack `i` of the pooled result from the convolution's result in the workspace.
template <class T>
PYOPS_HOST_DEVICE inline void pool_pack(const Conv2dPoolParams& p, uint32_t i) {
  constexpr int kWidth = Pack<T>::kWidth;
  const PackOfPixel to(i, p.pooled_h, p.pooled_w, p.o, kWidth);
  const T* const image =
      static_cast<const T*>(p.workspace) + to.image * p.oh * p.ow * p.o + to.channel;
  WindowMaximum<T> best[kWidth];
  take_window<T>(p, to.row, to.column, best,
                 [&](int y, int x) { return load_pack(image + (y * p.ow + x) * p.o); });
  store_pooled<T>(p, int64_t{i} * kWidth, best);
}

// Pack `i` of the gradient of the convolution's result: what the windows over it send it, in their
// order.
template <class T>
PYOPS_HOST_DEVICE inline void unpool_pack(const Conv2dPoolBackwardParams& p, uint32_t i) {
  constexpr int kWidth = Pack<T>::kWidth;
  const PackOfPixel to(i, p.oh, p.ow, p.o, kWidth);
  const ShortPoolAxis h = shortened(p.pool_h), w = shortened(p.pool_w);
  const auto rows = h.covering(to.row, static_cast<int>(p.pooled_h));
  const auto cols = w.covering(to.column, static_cast<int>(p.pooled_w));
  acc_t<T> sums[kWidth]{};
  for (int py = rows.begin; py < rows.end; ++py) {
    const int ty = h.tap_at(py, to.row);
    for (int px = cols.begin; px < cols.end; ++px) {
      const int tx = w.tap_at(px, to.column);
      if (ty < 0 || tx < 0) continue;
      const int64_t at = ((to.image * p.pooled_h + py) * p.pooled_w + px) * p.o + to.channel;
      const Pack<T> grads = load_pack(static_cast<const T*>(p.grad_pooled) + at);
      int32_t taps[kWidth];
      load_taps<T>(p, at, taps);
      PYOPS_UNROLL for (int k = 0; k < kWidth; ++k) {
        const bool passes = taps[k] == ty * w.kernel + tx;
        sums[k] += passes ? static_cast<acc_t<T>>(grads.at[k]) : acc_t<T>(0);
      }
    }
  }
  Pack<T> pack;
  PYOPS_UNROLL for (int k = 0; k < kWidth; ++k) pack.at[k] = static_cast<T>(sums[k]);
  store_pack(static_cast<T*>(p.grad_y) + int64_t{i} * kWidth, pack);
}

}  // namespace pyops
