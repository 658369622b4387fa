// Three GEMMs over the shared engine: y = x·wᵀ, grad_x = g·w, grad_w = gᵀ·x, where the ReLU mask is
// applied while g is packed.
#pragma once

#include "gemm/column_sums_simd.h"
#include "gemm/gemm_simd.h"
#include "linear_relu/linear_relu.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

template <class T>
void linear_forward(const LinearParams& p) {
  const StridedOperand<T> x{static_cast<const T*>(p.x), p.m, p.k, 1};
  const StridedOperand<T> w{static_cast<const T*>(p.w), p.n, p.k, 1};
  gemm(p.m, p.n, p.k, x, w,
       MatrixSink<T>{static_cast<T*>(p.y), p.n, static_cast<const T*>(p.bias), p.relu},
       p.precision);
}

template <class T, bool kMasked>
void linear_backward(const LinearBackwardParams& p) {
  const auto *grad_y = static_cast<const T*>(p.grad_y), *y = static_cast<const T*>(p.y);
  const StridedOperand<T, kMasked> g{grad_y, p.m, p.n, 1, y}, g_t{grad_y, p.n, 1, p.n, y};
  if (p.grad_x != nullptr) {
    const StridedOperand<T> w{static_cast<const T*>(p.w), p.k, 1, p.k};
    gemm(p.m, p.k, p.n, g, w, MatrixSink<T>{static_cast<T*>(p.grad_x), p.k}, p.precision);
  }
  if (p.grad_w != nullptr) {
    const StridedOperand<T> x{static_cast<const T*>(p.x), p.k, 1, p.k};
    gemm(p.n, p.k, p.m, g_t, x, MatrixSink<T>{static_cast<T*>(p.grad_w), p.k}, p.precision);
  }
  if (p.grad_bias != nullptr) column_sums(g, p.n, static_cast<T*>(p.grad_bias));
}

inline void linear_forward(const LinearParams& params) {
  dispatch_dtype<kKernelTypes>(params.dtype, [&](auto t) { linear_forward<decltype(t)>(params); });
}

inline void linear_backward(const LinearBackwardParams& params) {
  dispatch_dtype<kKernelTypes>(params.dtype, [&](auto t) {
    params.y != nullptr ? linear_backward<decltype(t), true>(params)
                        : linear_backward<decltype(t), false>(params);
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
