// The backward of a convolution by products that read the gradient as it lies: masked once, for
// both of them, and its channels summed apart.
#pragma once

#include "conv2d/conv2d_tensorop.h"
#include "core/cuda.cuh"

namespace pyops {

// products(p): grad_x and grad_weight of p, where they are wanted, for a p without a mask.
template <class Products>
cudaError_t backward_by_products(const Conv2dBackwardParams& given, cudaStream_t stream,
                                 Products&& products) {
  Conv2dBackwardParams p = given;
  p.workspace = static_cast<char*>(given.workspace) + masked_bytes(given);
  cudaError_t status = cudaSuccess;
  if (p.y != nullptr) {
    status = conv2d_backward_mask_cuda(given, stream);
    p.grad_y = given.workspace;
    p.y = nullptr;
  }
  if (status == cudaSuccess) status = products(p);
  if (status != cudaSuccess || p.grad_bias == nullptr) return status;
  p.grad_x = p.grad_weight = nullptr;  // what is left is a sum over the positions
  return conv2d_backward_cuda(p, stream);
}

}  // namespace pyops
