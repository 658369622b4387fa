// What stands where Hopper's kernels are left out: the tables name them, and nothing chooses them.
#include "attention/attention.h"
#include "conv2d/conv2d_pool_sm90.h"
#include "linear_relu/linear_relu.h"
#include "rnn/rnn_wavefront.h"

namespace pyops {

#define NOT_HERE(name, Params) \
  cudaError_t name(const Params&, cudaStream_t) { return cudaErrorNoKernelImageForDevice; }

NOT_HERE(attention_forward_sm90, AttentionParams)
NOT_HERE(attention_backward_sm90, AttentionBackwardParams)
NOT_HERE(conv2d_forward_sm90, Conv2dParams)
NOT_HERE(conv2d_backward_sm90, Conv2dBackwardParams)
NOT_HERE(conv2d_pool_forward_fused_sm90, Conv2dPoolParams)
NOT_HERE(linear_forward_sm90, LinearParams)
NOT_HERE(linear_backward_sm90, LinearBackwardParams)
NOT_HERE(rnn_backward_resident_sm90, RnnBackwardParams)
NOT_HERE(rnn_backward_wavefront_sm90, RnnBackwardStack)

int64_t conv2d_backward_workspace_sm90(const Conv2dBackwardParams&) { return 0; }
int64_t linear_backward_workspace_sm90(const LinearBackwardParams&) { return 0; }
int64_t rnn_backward_workspace_sm90(const RnnBackwardParams&) { return 0; }

}  // namespace pyops
