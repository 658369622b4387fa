// A linear layer as products of matrices as they lie, bias and ReLU in the epilogue of the first.
#pragma once

#include "gemm/backward_by_products.cuh"
#include "gemm/tensorop_operands.h"
#include "linear_relu/linear_relu_tensorop.h"

namespace pyops {

inline TensoropOperands forward_operands(const LinearParams& p) {
  return {p.m, p.n, p.k, p.x, p.w, p.bias, p.y, p.k, p.k, p.n, p.relu};
}

// multiply_nn(operands) and multiply_tn(operands): D = A · B and D = Aᵀ · B.
template <class Nn, class Tn>
cudaError_t linear_backward_by(const LinearBackwardParams& given, cudaStream_t stream,
                               Nn&& multiply_nn, Tn&& multiply_tn) {
  return backward_by_products(given, stream, [&](const LinearBackwardParams& p) {
    cudaError_t status = cudaSuccess;
    if (p.grad_x != nullptr) {
      status = multiply_nn(
          TensoropOperands{p.m, p.k, p.n, p.grad_y, p.w, nullptr, p.grad_x, p.n, p.k, p.k});
    }
    if (status != cudaSuccess || p.grad_w == nullptr) return status;
    return multiply_tn(
        TensoropOperands{p.n, p.k, p.m, p.grad_y, p.x, nullptr, p.grad_w, p.n, p.k, p.k});
  });
}

}  // namespace pyops
