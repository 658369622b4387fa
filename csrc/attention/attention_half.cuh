// Kernels of half precision, by type and width.
#pragma once

#include "attention/attention_width.h"

namespace pyops {

// f.operator()<T, kD>(); its status.
template <class F>
cudaError_t with_half_width(const AttentionShape& p, const F& f) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype<kHalfTypes>(p.dtype, [&]<class T>(T) {
    status = with_width(p, [&]<int kD>() { return f.template operator()<T, kD>(); });
  });
  return status;
}

}  // namespace pyops
