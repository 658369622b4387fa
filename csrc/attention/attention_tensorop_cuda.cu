// Attention in half precision on the tensor cores of any GPU from sm_80 on.
#include "attention/attention_half.cuh"
#include "attention/attention_tensorop.cuh"

namespace pyops {

cudaError_t attention_forward_tensorop_cuda(const AttentionParams& p, cudaStream_t stream) {
  return with_half_width(
      p, [&]<class T, int kD>() { return launch_forward_tensorop<HalfStep<T>, kD>(p, stream); });
}

}  // namespace pyops
