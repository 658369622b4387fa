// Linear layers of half precision on the tensor cores of any GPU from sm_80 on.
#include "gemm/tensorop.cuh"
#include "linear_relu/linear_relu_tensorop.cuh"

namespace pyops {
namespace {

using cutlass::layout::ColumnMajor;
using cutlass::layout::RowMajor;

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

}  // namespace

cudaError_t linear_forward_tensorop_cuda(const LinearParams& p, cudaStream_t stream) {
  return with_half_type(p.dtype, [&]<class T>(T) {
    using Gemm = TensoropGemm<T, RowMajor, ColumnMajor, StoreRelu<T>>;
    return launch_tensorop<Gemm>(linear_forward_tensorop_kernel<Gemm>, forward_operands(p), stream);
  });
}

cudaError_t linear_backward_tensorop_cuda(const LinearBackwardParams& p, cudaStream_t stream) {
  return with_half_type(p.dtype, [&]<class T>(T) {
    const auto multiply_by = [&]<class Gemm>() {
      return [stream](const TensoropOperands& o) {
        return launch_tensorop<Gemm>(linear_backward_tensorop_kernel<Gemm>, o, stream);
      };
    };
    return linear_backward_by(
        p, stream, multiply_by.template operator()<TensoropGemm<T, RowMajor, RowMajor>>(),
        multiply_by.template operator()<TensoropGemm<T, ColumnMajor, RowMajor>>());
  });
}

}  // namespace pyops
