// Linear layers of float32 on the tensor cores of any GPU from sm_80 on: by TF32 where PyTorch's
// switches allow it, else by three products of TF32 with float32's accuracy.
#include "gemm/gemm_tf32.h"
#include "linear_relu/linear_relu_tensorop.cuh"

namespace pyops {
namespace {

cudaError_t backward(Precision precision, const LinearBackwardParams& p, cudaStream_t stream) {
  return linear_backward_by(
      p, stream, [&](const TensoropOperands& o) { return gemm_nn_tf32(precision, o, stream); },
      [&](const TensoropOperands& o) { return gemm_tn_tf32(precision, o, stream); });
}

}  // namespace

cudaError_t linear_forward_tf32_cuda(const LinearParams& p, cudaStream_t stream) {
  return gemm_nt_tf32(Precision::kHigh, forward_operands(p), stream);
}
cudaError_t linear_forward_3xtf32_cuda(const LinearParams& p, cudaStream_t stream) {
  return gemm_nt_tf32(Precision::kHighest, forward_operands(p), stream);
}

cudaError_t linear_backward_tf32_cuda(const LinearBackwardParams& p, cudaStream_t stream) {
  return backward(Precision::kHigh, p, stream);
}
cudaError_t linear_backward_3xtf32_cuda(const LinearBackwardParams& p, cudaStream_t stream) {
  return backward(Precision::kHighest, p, stream);
}

}  // namespace pyops
