// The gradients of attention in half precision on the tensor cores of any GPU from sm_80 on.
#include "attention/attention_backward_tensorop.cuh"
#include "attention/attention_half.cuh"

namespace pyops {

cudaError_t attention_backward_tensorop_cuda(const AttentionBackwardParams& p,
                                             cudaStream_t stream) {
  return with_half_width(
      p, [&]<class T, int kD>() { return launch_backward_tensorop<HalfStep<T>, kD>(p, stream); });
}

}  // namespace pyops
