// Images copied to float32 pixels, the channels of each side by side. Lines that miss are overtaken
// by few, so those that are needed later are asked for.
#pragma once

#include "conv2d/patches_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

template <bool kMasked, class T>
void ask_for(const Images<T>& images, int64_t offset) {
  prefetch_to_read(images.data + offset);
  if constexpr (kMasked) prefetch_to_read(images.mask + offset);
}

// `count` elements in a row.
template <bool kMasked, class T>
void copy_run(const Images<T>& images, int64_t from, int64_t count, float* out) {
  using V = Vec<float>;
  constexpr int64_t kAhead = 2048 / sizeof(T);
  int64_t i = 0;
  for (; i + V::kWidth <= count; i += V::kWidth) {
    ask_for<kMasked>(images, from + i + kAhead);
    load_masked<T, kMasked>(images, from + i, V::kWidth).store(out + i);
  }
  const int rest = static_cast<int>(count - i);
  if (rest > 0) load_masked<T, kMasked>(images, from + i, rest).store(out + i, rest);
}

// As copy_pixels, of pixels as they lie.
template <bool kMasked, class T>
void copy_lines(const Images<T>& all, int64_t offset, int64_t length, int64_t channels, float* out,
                int64_t width, int64_t pitch) {
  using V = Vec<float>;
  constexpr int64_t kAhead = 4096 / sizeof(T);
  const Images<T> images = all;  // for all the compiler knows, a store changes the shared one
  for (int64_t i = 0; i < length; ++i, offset += images.total_channels, out += pitch) {
    int64_t c = 0;
    for (; c + V::kWidth <= channels; c += V::kWidth) {
      ask_for<kMasked>(images, offset + c + kAhead);
      load_masked<T, kMasked>(images, offset + c, V::kWidth).store(out + c);
    }
    for (; c < width; c += V::kWidth) {
      const int have = static_cast<int>(std::max<int64_t>(channels - c, 0));
      const int room = static_cast<int>(std::min<int64_t>(V::kWidth, width - c));
      store(load_masked<T, kMasked>(images, offset + c, have), out + c, room);
    }
  }
}

// The same of planes.
template <bool kMasked, class T, class Out>
void turn_planes(const Images<T>& all, int64_t offset, int64_t length, int64_t channels, Out* out,
                 int64_t width, int64_t pitch) {
  using V = Vec<float>;
  constexpr int64_t kAhead = 1024 / sizeof(T);
  const Images<T> images = all;
  const int64_t plane = images.y.size * images.x.size;
  const bool apart = plane > 2 * kAhead;  // or else it is the next plane that lies ahead
  for (int64_t c = 0; c < width; c += V::kWidth, offset += V::kWidth * plane) {
    const int have = static_cast<int>(std::clamp<int64_t>(channels - c, 0, V::kWidth));
    const int room = static_cast<int>(std::min<int64_t>(V::kWidth, width - c));
    for (int64_t i = 0; i < length; i += V::kWidth) {
      const int n = static_cast<int>(std::min<int64_t>(V::kWidth, length - i));
      V block[V::kWidth];
      for (int k = 0; k < V::kWidth; ++k) {
        const int64_t from = offset + k * plane + i;
        block[k] = k < have ? load_masked<T, kMasked>(images, from, n) : V::zero();
        if (k < have && apart) ask_for<kMasked>(images, from + kAhead);
      }
      transpose(block);
      Out* to = out + i * pitch + c;
      if (room == V::kWidth) {
        for (int k = 0; k < n; ++k, to += pitch) block[k].store(to);
      } else {
        for (int k = 0; k < n; ++k, to += pitch) block[k].store(to, room);
      }
    }
  }
}

// `length` pixels from `offset` on: out[i * pitch + c] for c < width, zero from `channels` on.
template <bool kMasked, class T>
void copy_pixels(const Images<T>& images, bool channels_last, int64_t offset, int64_t length,
                 int64_t channels, float* out, int64_t width, int64_t pitch) {
  channels_last ? copy_lines<kMasked>(images, offset, length, channels, out, width, pitch)
                : turn_planes<kMasked>(images, offset, length, channels, out, width, pitch);
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
