// A call as calls of some images each, for kernels whose offsets or counts of 32 bits reach no
// further. Nothing but grad_weight and grad_bias is summed over images.
#pragma once

#include <algorithm>

#include "conv2d/conv2d.h"
#include "core/pack.h"

namespace pyops {

inline int64_t element_bytes(Dtype dtype) { return kPackBytes / pack_width(dtype); }

// How many images a launch takes of `image` units each, of which it may see fewer than 2^31. None
// where one is too large; a positive number for no image at all.
inline int64_t images_below_2gi(int64_t image) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  return kMost / std::max<int64_t>(1, image);
}
// Of sm_80's tensor cores, whose offsets in x and y are bytes.
inline int64_t images_of_launch(const Conv2dShape& s, Dtype dtype) {
  return images_below_2gi(element_bytes(dtype) * std::max(s.c * s.h * s.w, s.o * s.oh * s.ow));
}

// Of a convolution that is stored before it is pooled, so that a part of it is all that is kept.
inline int64_t images_of_pooling(const Conv2dPoolParams& p) {
  return std::max<int64_t>(1, images_of_launch(p, p.dtype));
}

// The image at `first` of a tensor, if that is there.
template <class Pointer>
Pointer image_at(Pointer tensor, int64_t bytes, int64_t first) {
  using Byte =
      std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char, char>;
  return tensor == nullptr ? nullptr : static_cast<Byte*>(tensor) + bytes * first;
}

inline Conv2dParams images_of(Conv2dParams p, int64_t first, int64_t count) {
  const int64_t element = element_bytes(p.dtype);
  p.n = count;
  p.x = image_at(p.x, element * p.c * p.h * p.w, first);
  p.y = image_at(p.y, element * p.o * p.oh * p.ow, first);
  return p;
}

inline Conv2dBackwardParams images_of(Conv2dBackwardParams p, int64_t first, int64_t count) {
  const int64_t in = element_bytes(p.dtype) * p.c * p.h * p.w;
  const int64_t out = element_bytes(p.dtype) * p.o * p.oh * p.ow;
  p.n = count;
  p.grad_y = image_at(p.grad_y, out, first);
  p.y = image_at(p.y, out, first);
  p.x = image_at(p.x, in, first);
  p.grad_x = image_at(p.grad_x, in, first);
  return p;
}

// The workspace is each part's in turn.
inline Conv2dPoolParams images_of(Conv2dPoolParams p, int64_t first, int64_t count) {
  const int64_t pooled = p.o * p.pooled_h * p.pooled_w, element = element_bytes(p.dtype);
  p.n = count;
  p.x = image_at(p.x, element * p.c * p.h * p.w, first);
  p.y = image_at(p.y, element * pooled, first);
  p.offsets = image_at(p.offsets, (p.wide_offsets ? 4 : 1) * pooled, first);
  return p;
}

inline Conv2dPoolBackwardParams images_of(Conv2dPoolBackwardParams p, int64_t first,
                                          int64_t count) {
  const int64_t pooled = p.o * p.pooled_h * p.pooled_w, element = element_bytes(p.dtype);
  p.n = count;
  p.grad_pooled = image_at(p.grad_pooled, element * pooled, first);
  p.offsets = image_at(p.offsets, (p.wide_offsets ? 4 : 1) * pooled, first);
  p.grad_y = image_at(p.grad_y, element * p.o * p.oh * p.ow, first);
  return p;
}

// run(part) for parts of at most `most` images, in their order, until one fails.
template <class Params, class Run>
cudaError_t for_images(const Params& p, int64_t most, Run&& run) {
  auto status = cudaError_t{};
  for (int64_t first = 0; first < p.n && status == cudaError_t{}; first += most) {
    status = run(images_of(p, first, std::min(most, p.n - first)));
  }
  return status;
}

// grad_weight as a sum over such parts. multiply(part, to, &count) leaves `count` float32 sums at
// `to`; add(dtype, to, count) adds up as many from where the workspace begins. There stands first,
// from the second part on, the sum over those before.
template <class Multiply, class Add>
cudaError_t sum_images(const Conv2dBackwardParams& p, int64_t most, Multiply&& multiply,
                       Add&& add) {
  float* const sums = static_cast<float*>(p.workspace);
  int64_t images = 0;
  return for_images(p, most, [&](const Conv2dBackwardParams& part) {
    const int64_t before = images > 0 ? 1 : 0;
    int64_t count = 0;
    const cudaError_t status = multiply(part, sums + before * p.weights(), &count);
    if (status != cudaError_t{}) return status;
    images += part.n;
    return images == p.n ? add(p.dtype, p.grad_weight, before + count)
                         : add(Dtype::kFloat32, static_cast<void*>(sums), before + count);
  });
}

}  // namespace pyops
