// Both directions for the types that compute in float32.
#pragma once

#include "attention/attention_backward_simd.h"
#include "attention/attention_forward_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Calls f(T{}) with the C++ type of `dtype`; float64 has no exponential here.
template <class F>
void dispatch_float32_based(Dtype dtype, F&& f) {
  if (dtype == Dtype::kFloat32) return f(float{});
  if (dtype == Dtype::kBFloat16) return f(BFloat16{});
  return f(Float16{});
}

inline void attention_forward(const AttentionParams& params) {
  dispatch_float32_based(
      params.dtype, [&](auto t) { attention_forward<decltype(t), VectorEngine<float>>(params); });
}

inline void attention_backward(const AttentionBackwardParams& params) {
  dispatch_float32_based(
      params.dtype, [&](auto t) { attention_backward<decltype(t), VectorEngine<float>>(params); });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
