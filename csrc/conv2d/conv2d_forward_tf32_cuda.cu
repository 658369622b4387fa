// Convolutions of float32 on the tensor cores of any GPU from sm_80 on: by TF32 where
// PyTorch's switches allow it, else by three products of TF32 with float32's accuracy.
#include "conv2d/conv2d_tensorop.cuh"

namespace pyops {

cudaError_t conv2d_forward_tf32_cuda(const Conv2dParams& p, cudaStream_t stream) {
  return tensorop::forward<Tf32Products>(p, stream);
}
cudaError_t conv2d_forward_3xtf32_cuda(const Conv2dParams& p, cudaStream_t stream) {
  return tensorop::forward<Float32Products>(p, stream);
}

}  // namespace pyops
