// The gradients of attention in float32 on the tensor cores of any GPU from sm_80 on: by TF32 where
// PyTorch's switches allow it, else by three products of TF32 with float32's accuracy.
#include "attention/attention_backward_tensorop.cuh"
#include "attention/attention_width.h"

namespace pyops {

cudaError_t attention_backward_tf32_cuda(const AttentionBackwardParams& p, cudaStream_t stream) {
  return with_width(p, [&]<int kD>() { return launch_backward_tensorop<Tf32Step, kD>(p, stream); });
}
cudaError_t attention_backward_3xtf32_cuda(const AttentionBackwardParams& p, cudaStream_t stream) {
  return launch_backward_tensorop<SplitStep, 64>(p, stream);
}

}  // namespace pyops
