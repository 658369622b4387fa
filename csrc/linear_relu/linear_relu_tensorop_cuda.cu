// Linear layers of half precision on the tensor cores of any GPU from sm_80 on.
#include "linear_relu/linear_relu_tensorop.cuh"

namespace pyops {

cudaError_t linear_forward_tensorop_cuda(const LinearParams& p, cudaStream_t stream) {
  return with_half_type(
      p.dtype, [&]<class T>(T) { return linear_forward_tensorop<HalfProducts<T>>(p, stream); });
}

cudaError_t linear_backward_tensorop_cuda(const LinearBackwardParams& p, cudaStream_t stream) {
  return with_half_type(
      p.dtype, [&]<class T>(T) { return linear_backward_tensorop<HalfProducts<T>>(p, stream); });
}

}  // namespace pyops
