#include "gemm/gemm_tf32.h"
#include "gemm/tensorop.cuh"

namespace pyops {
namespace {

using cutlass::layout::ColumnMajor;
using cutlass::layout::RowMajor;

template <class Gemm>
__global__ void __launch_bounds__(Gemm::GemmKernel::kThreadCount, kBlocksOfTensorop<Gemm>)
    gemm_forward_tensorop_kernel(const __grid_constant__ typename Gemm::GemmKernel::Params p) {
  multiply_tensorop<Gemm>(p);
}
template <class Gemm>
__global__ void __launch_bounds__(Gemm::GemmKernel::kThreadCount, kBlocksOfTensorop<Gemm>)
    gemm_backward_tensorop_kernel(const __grid_constant__ typename Gemm::GemmKernel::Params p) {
  multiply_tensorop<Gemm>(p);
}

// f.operator()<Arithmetic>()
template <class F>
cudaError_t with_arithmetic(Precision precision, F&& f) {
  return precision == Precision::kHighest ? f.template operator()<Float32Products>()
                                          : f.template operator()<Tf32Products>();
}

template <class LayoutA>
cudaError_t backward(Precision precision, const TensoropOperands& o, cudaStream_t stream) {
  return with_arithmetic(precision, [&]<class Arithmetic>() {
    using Gemm = TensoropProduct<Arithmetic, LayoutA, RowMajor, StoreSums<float>>;
    return launch_tensorop_in_parts<Gemm>(gemm_backward_tensorop_kernel<Gemm>, o,
                                          Arithmetic::kDeepest, stream);
  });
}

}  // namespace

cudaError_t gemm_nt_tf32(Precision precision, const TensoropOperands& o, cudaStream_t stream) {
  return with_arithmetic(precision, [&]<class Arithmetic>() {
    using Gemm = TensoropProduct<Arithmetic, RowMajor, ColumnMajor, StoreRelu<float>>;
    return launch_tensorop_in_parts<Gemm>(gemm_forward_tensorop_kernel<Gemm>, o,
                                          Arithmetic::kDeepest, stream);
  });
}

cudaError_t gemm_nn_tf32(Precision precision, const TensoropOperands& o, cudaStream_t stream) {
  return backward<RowMajor>(precision, o, stream);
}

cudaError_t gemm_tn_tf32(Precision precision, const TensoropOperands& o, cudaStream_t stream) {
  return backward<ColumnMajor>(precision, o, stream);
}

}  // namespace pyops
