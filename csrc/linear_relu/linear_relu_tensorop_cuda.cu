// Linear layers of half precision on the tensor cores of any GPU from sm_80 on, bias and ReLU in
// the epilogue. The backward masks the gradient once, as two products read it.
#include <type_traits>

#include "core/relu_mask.cuh"
#include "gemm/tensorop.cuh"
#include "linear_relu/linear_relu.h"

namespace pyops {
namespace {

using cutlass::layout::ColumnMajor;
using cutlass::layout::RowMajor;

template <class T, class LayoutA, class LayoutB, bool kRelu>
using Gemm =
    TensoropGemm<T, LayoutA, LayoutB, std::conditional_t<kRelu, StoreRelu<T>, StoreSums<T>>>;

template <class Gemm>
__global__ void __launch_bounds__(Gemm::GemmKernel::kThreadCount, 2)
    linear_forward_tensorop_kernel(const __grid_constant__ typename Gemm::GemmKernel::Params p) {
  multiply_tensorop<Gemm>(p);
}
template <class Gemm>
__global__ void __launch_bounds__(Gemm::GemmKernel::kThreadCount, 2)
    linear_backward_tensorop_kernel(const __grid_constant__ typename Gemm::GemmKernel::Params p) {
  multiply_tensorop<Gemm>(p);
}

template <class T, bool kRelu>
cudaError_t forward(const LinearParams& p, cudaStream_t stream) {
  using Product = Gemm<T, RowMajor, ColumnMajor, kRelu>;
  const TensoropOperands o{p.m, p.n, p.k, p.x, p.w, p.bias, p.y, p.k, p.k, p.n};
  return launch_tensorop<Product>(linear_forward_tensorop_kernel<Product>, o, stream);
}

// f(T{}) with CUTLASS's name of the element type.
template <class F>
cudaError_t with_half_type(Dtype dtype, F&& f) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype<kHalfTypes>(dtype,
                             [&]<class T>(T) { status = f(typename CutlassType<T>::type{}); });
  return status;
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    linear_backward_mask_kernel(LinearBackwardParams p, int64_t packs) {
  mask_packs<T>(p.grad_y, p.y, p.masked, packs);
}

cudaError_t mask(const LinearBackwardParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  const int64_t packs = p.m * p.n / pack_width(p.dtype);
  dispatch_dtype<kHalfTypes>(p.dtype, [&]<class T>(T) {
    status = launch(linear_backward_mask_kernel<T>, packs, stream, p, packs);
  });
  return status;
}

}  // namespace

cudaError_t linear_forward_tensorop_cuda(const LinearParams& p, cudaStream_t stream) {
  return with_half_type(p.dtype, [&]<class T>(T) {
    return p.relu ? forward<T, true>(p, stream) : forward<T, false>(p, stream);
  });
}

cudaError_t linear_backward_tensorop_cuda(const LinearBackwardParams& given, cudaStream_t stream) {
  LinearBackwardParams p = given;
  if (p.y != nullptr) {
    if (const cudaError_t status = mask(p, stream); status != cudaSuccess) return status;
    p.grad_y = p.masked;
    p.y = nullptr;
  }
  const cudaError_t status = with_half_type(p.dtype, [&]<class T>(T) {
    using X = Gemm<T, RowMajor, RowMajor, false>;
    using W = Gemm<T, ColumnMajor, RowMajor, false>;
    cudaError_t status = cudaSuccess;
    if (p.grad_x != nullptr) {
      const TensoropOperands o{p.m, p.k, p.n, p.grad_y, p.w, nullptr, p.grad_x, p.n, p.k, p.k};
      status = launch_tensorop<X>(linear_backward_tensorop_kernel<X>, o, stream);
    }
    if (status == cudaSuccess && p.grad_w != nullptr) {
      const TensoropOperands o{p.n, p.k, p.m, p.grad_y, p.x, nullptr, p.grad_w, p.n, p.k, p.k};
      status = launch_tensorop<W>(linear_backward_tensorop_kernel<W>, o, stream);
    }
    return status;
  });
  if (status != cudaSuccess || p.grad_bias == nullptr) return status;
  p.grad_x = p.grad_w = nullptr;  // what is left is a sum of columns
  return linear_backward_cuda(p, stream);
}

}  // namespace pyops
