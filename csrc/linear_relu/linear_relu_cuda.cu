// Linear layers on any GPU from sm_80 on, for any dtype, shape and alignment, without tensor cores:
// float32 is float32 here. Sums run in the order of the depth, so that every run gives the same.
#include "gemm/block_product.cuh"
#include "linear_relu/linear_relu_product.h"

namespace pyops {
namespace {

template <class Product>
__global__ void __launch_bounds__(kBlock, kBlocksOfProducts) linear_forward_kernel(Product p) {
  multiply_blocks(p);
}
template <class Product>
__global__ void __launch_bounds__(kBlock, kBlocksOfProducts) linear_backward_kernel(Product p) {
  multiply_blocks(p);
}

}  // namespace

cudaError_t linear_forward_cuda(const LinearParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    status = launch_product(linear_forward_kernel<LinearForward<T>>, LinearForward<T>{p}, stream);
  });
  return status;
}

cudaError_t linear_backward_cuda(const LinearBackwardParams& p, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    const LinearBackwardX<T> x{p};
    const LinearBackwardW<T> w{p};
    if (p.grad_x != nullptr) {
      status = launch_product(linear_backward_kernel<LinearBackwardX<T>>, x, stream);
    }
    if (status == cudaSuccess) {
      status = launch_product(linear_backward_kernel<LinearBackwardW<T>>, w, stream);
    }
  });
  return status;
}

}  // namespace pyops
