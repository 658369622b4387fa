// Sixteen bytes of neighbouring elements: what one thread of a GPU moves in one instruction.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/dtype.h"

namespace pyops {

template <class T>
struct alignas(16) Pack {
  static constexpr int kWidth = 16 / sizeof(T);

  T at[kWidth];
};

// A byte for each element of a pack, moved together.
template <class T>
struct alignas(Pack<T>::kWidth) PackOfBytes {
  uint8_t at[Pack<T>::kWidth];
};

inline constexpr int64_t kPackBytes = 16;

inline int64_t pack_width(Dtype dtype) {
  int64_t width = 0;
  dispatch_dtype(dtype, [&]<class T>(T) { width = Pack<T>::kWidth; });
  return width;
}

// A GPU bears no other address; a CPU, which runs kernels for the sake of tests, would.
PYOPS_HOST_DEVICE inline void expect_aligned([[maybe_unused]] const void* at,
                                             [[maybe_unused]] uintptr_t bytes) {
#ifndef __CUDA_ARCH__
  if (reinterpret_cast<uintptr_t>(at) % bytes != 0) __builtin_trap();
#endif
}

// `from` and `to` are aligned to 16 bytes; what is loaded is written by nobody meanwhile.
template <class T>
PYOPS_HOST_DEVICE inline Pack<T> load_pack(const T* from) {
  Pack<T> pack;
  expect_aligned(from, sizeof pack);
#ifdef __CUDA_ARCH__
  const uint4 words = __ldg(reinterpret_cast<const uint4*>(from));
  memcpy(&pack, &words, sizeof pack);
#else
  memcpy(&pack, from, sizeof pack);
#endif
  return pack;
}

template <class T>
PYOPS_HOST_DEVICE inline void store_pack(T* to, const Pack<T>& pack) {
  expect_aligned(to, sizeof pack);
#ifdef __CUDA_ARCH__
  uint4 words;
  memcpy(&words, &pack, sizeof words);
  *reinterpret_cast<uint4*>(to) = words;
#else
  memcpy(to, &pack, sizeof pack);
#endif
}

// One thread's share of images with channels last: a pixel, and a pack of its channels from
// `channel` on.
struct PackOfPixel {
  int64_t image;
  int row, column, channel;

  PYOPS_HOST_DEVICE PackOfPixel(uint32_t thread, int64_t height, int64_t width, int64_t channels,
                                int pack) {
    const auto packs = static_cast<uint32_t>(channels / pack);
    const auto columns = static_cast<uint32_t>(width);
    const uint32_t pixel = thread / packs, line = pixel / columns;
    channel = static_cast<int>(thread % packs) * pack;
    column = static_cast<int>(pixel % columns);
    row = static_cast<int>(line % static_cast<uint32_t>(height));
    image = line / static_cast<uint32_t>(height);
  }
};

inline bool is_pack_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % kPackBytes == 0;
}

}  // namespace pyops
