// Convolutions of half precision on the tensor cores of any GPU from sm_80 on.
#include "conv2d/conv2d_tensorop.cuh"

namespace pyops {

cudaError_t conv2d_forward_tensorop_cuda(const Conv2dParams& p, cudaStream_t stream) {
  return with_half_type(p.dtype,
                        [&]<class T>(T) { return tensorop::forward<HalfProducts<T>>(p, stream); });
}

}  // namespace pyops
