// The backward of a layer by products that read the gradient as it lies: masked once, for both of
// them, and its columns summed apart.
#pragma once

#include <cuda_runtime_api.h>

#include "gemm/gradient_matrix.h"

namespace pyops {

// products(p): the gradients of input and weight of p, where they are wanted, for a p without a
// mask. The workspace has backward_workspace(), aligned to 16 bytes throughout.
template <class Params, class Products>
cudaError_t backward_by_products(const Params& given, cudaStream_t stream, Products&& products) {
  const GradientMatrix gradient = gradient_of(given);
  Params p = given;
  cudaError_t status = cudaSuccess;
  if (p.y != nullptr) {
    status = mask_gradient_cuda(gradient, p.grad_y, p.y, p.workspace, stream);
    p.grad_y = p.workspace;
    p.workspace = static_cast<char*>(p.workspace) + gradient.masked_bytes();
    p.y = nullptr;
  }
  if (status == cudaSuccess) status = products(p);
  if (status != cudaSuccess || p.grad_bias == nullptr) return status;
  return sum_columns_cuda(gradient, p.grad_y, p.grad_bias, p.workspace, stream);
}

}  // namespace pyops
