// Linear layers on the tensor cores of any GPU from sm_80 on, bias and ReLU in the epilogue.
#pragma once

#include "gemm/backward_by_products.cuh"
#include "gemm/tensorop.cuh"
#include "linear_relu/linear_relu_tensorop.h"

namespace pyops {

template <class Gemm>
__global__ void __launch_bounds__(Gemm::GemmKernel::kThreadCount, kBlocksOfTensorop<Gemm>)
    linear_forward_tensorop_kernel(const __grid_constant__ typename Gemm::GemmKernel::Params p) {
  multiply_tensorop<Gemm>(p);
}
template <class Gemm>
__global__ void __launch_bounds__(Gemm::GemmKernel::kThreadCount, kBlocksOfTensorop<Gemm>)
    linear_backward_tensorop_kernel(const __grid_constant__ typename Gemm::GemmKernel::Params p) {
  multiply_tensorop<Gemm>(p);
}

template <class Arithmetic>
cudaError_t linear_forward_tensorop(const LinearParams& p, cudaStream_t stream) {
  using Gemm = TensoropProduct<Arithmetic, cutlass::layout::RowMajor, cutlass::layout::ColumnMajor,
                               StoreRelu<typename Arithmetic::Element>>;
  const TensoropOperands o{p.m, p.n, p.k, p.x, p.w, p.bias, p.y, p.k, p.k, p.n, p.relu};
  return launch_tensorop_in_parts<Gemm>(linear_forward_tensorop_kernel<Gemm>, o,
                                        Arithmetic::kDeepest, stream);
}

template <class Arithmetic>
cudaError_t linear_backward_tensorop(const LinearBackwardParams& given, cudaStream_t stream) {
  using cutlass::layout::ColumnMajor, cutlass::layout::RowMajor;
  using Store = StoreSums<typename Arithmetic::Element>;
  return backward_by_products(given, stream, [&](const LinearBackwardParams& p) {
    using X = TensoropProduct<Arithmetic, RowMajor, RowMajor, Store>;
    using W = TensoropProduct<Arithmetic, ColumnMajor, RowMajor, Store>;
    cudaError_t status = cudaSuccess;
    if (p.grad_x != nullptr) {
      const TensoropOperands o{p.m, p.k, p.n, p.grad_y, p.w, nullptr, p.grad_x, p.n, p.k, p.k};
      status = launch_tensorop_in_parts<X>(linear_backward_tensorop_kernel<X>, o,
                                           Arithmetic::kDeepest, stream);
    }
    if (status == cudaSuccess && p.grad_w != nullptr) {
      const TensoropOperands o{p.n, p.k, p.m, p.grad_y, p.x, nullptr, p.grad_w, p.n, p.k, p.k};
      status = launch_tensorop_in_parts<W>(linear_backward_tensorop_kernel<W>, o,
                                           Arithmetic::kDeepest, stream);
    }
    return status;
  });
}

}  // namespace pyops
