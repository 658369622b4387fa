// The backward of a linear layer by products that read the gradient as it lies: masked once, for
// both of them, and its columns summed apart.
#pragma once

#include "core/cuda.cuh"
#include "linear_relu/linear_relu.h"

namespace pyops {

// products(p): grad_x and grad_w of p, where they are wanted, for a p without a mask.
template <class Products>
cudaError_t backward_by_products(const LinearBackwardParams& given, cudaStream_t stream,
                                 Products&& products) {
  LinearBackwardParams p = given;
  cudaError_t status = cudaSuccess;
  if (p.y != nullptr) {
    status = linear_backward_mask_cuda(given, stream);
    p.grad_y = p.masked;
    p.y = nullptr;
  }
  if (status == cudaSuccess) status = products(p);
  if (status != cudaSuccess || p.grad_bias == nullptr) return status;
  p.grad_x = p.grad_w = nullptr;  // what is left is a sum of columns
  return linear_backward_cuda(p, stream);
}

}  // namespace pyops
