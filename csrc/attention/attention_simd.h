// Both directions for every type.
#pragma once

#include "attention/attention_backward_simd.h"
#include "attention/attention_forward_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

inline void attention_forward(const AttentionParams& params) {
  dispatch_dtype(params.dtype, [&](auto t) {
    using T = decltype(t);
    attention_forward<T, VectorEngine<acc_t<T>>>(params);
  });
}

inline void attention_backward(const AttentionBackwardParams& params) {
  dispatch_dtype(params.dtype, [&](auto t) {
    using T = decltype(t);
    attention_backward<T, VectorEngine<acc_t<T>>>(params);
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
