// Linear layers of float32 on the tensor cores of any GPU from sm_80 on: by TF32 where PyTorch's
// switches allow it, else by three products of TF32 with float32's accuracy.
#include "linear_relu/linear_relu_tensorop.cuh"

namespace pyops {

cudaError_t linear_forward_tf32_cuda(const LinearParams& p, cudaStream_t stream) {
  return linear_forward_tensorop<Tf32Products>(p, stream);
}
cudaError_t linear_forward_3xtf32_cuda(const LinearParams& p, cudaStream_t stream) {
  return linear_forward_tensorop<Float32Products>(p, stream);
}

cudaError_t linear_backward_tf32_cuda(const LinearBackwardParams& p, cudaStream_t stream) {
  return linear_backward_tensorop<Tf32Products>(p, stream);
}
cudaError_t linear_backward_3xtf32_cuda(const LinearBackwardParams& p, cudaStream_t stream) {
  return linear_backward_tensorop<Float32Products>(p, stream);
}

}  // namespace pyops
