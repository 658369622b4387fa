// The ReLU's backward as a pass of its own, for products that read the gradient as it lies.
#pragma once

#include "core/cuda.cuh"

namespace pyops {

// out = grad, but zero where y is not positive; a NaN of y lets the gradient pass.
template <class T>
__device__ void mask_packs(const void* grad, const void* y, void* out, int64_t packs) {
  for (int64_t i = thread_of_grid(); i < packs; i += stride_of_grid()) {
    const int64_t at = i * Pack<T>::kWidth;
    Pack<T> masked = load_pack(static_cast<const T*>(grad) + at);
    const Pack<T> outputs = load_pack(static_cast<const T*>(y) + at);
    PYOPS_UNROLL for (int v = 0; v < Pack<T>::kWidth; ++v) {
      if (static_cast<float>(outputs.at[v]) <= 0) masked.at[v] = static_cast<T>(0.0f);
    }
    store_pack(static_cast<T*>(out) + at, masked);
  }
}

}  // namespace pyops
