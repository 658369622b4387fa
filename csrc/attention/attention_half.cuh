// Kernels of half precision come for two widths, of q, k and v alike.
#pragma once

#include "attention/attention.h"

namespace pyops {

// f.operator()<T, kD>() of the narrowest that holds the call's columns; its status.
template <class F>
cudaError_t with_half_width(const AttentionShape& p, const F& f) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype<kHalfTypes>(p.dtype, [&]<class T>(T) {
    status = p.dim <= 64 && p.value_dim <= 64 ? f.template operator()<T, 64>()
                                              : f.template operator()<T, 128>();
  });
  return status;
}

}  // namespace pyops
