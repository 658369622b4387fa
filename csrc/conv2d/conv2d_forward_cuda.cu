// Convolutions on any GPU from sm_80 on, for any dtype, shape, group and layout, without tensor
// cores: float32 is float32 here. The image is unrolled into panels as a block needs them, never in
// memory. Depthwise convolutions, which share nothing, have one thread an output.
#include "conv2d/conv2d_block.cuh"

namespace pyops {
namespace {

template <class Problem>
__global__ void __launch_bounds__(kBlock, kBlocksOfProducts)
    conv2d_forward_kernel(const __grid_constant__ Problem problem, int64_t most) {
  multiply(problem, most);
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    conv2d_forward_depthwise_kernel(const __grid_constant__ Conv2dParams p) {
  const int64_t count = p.n * p.o * p.oh * p.ow;
  for (int64_t e = thread_of_grid(); e < count; e += stride_of_grid()) depthwise_element<T>(p, e);
}

}  // namespace

cudaError_t conv2d_forward_cuda(const Conv2dParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  with_layout(p, [&]<class T, bool kLast>() {
    using Problem = ForwardProblem<T, kLast>;
    status = launch_problem(conv2d_forward_kernel<Problem>, Problem{p}, stream);
  });
  return status;
}

cudaError_t conv2d_forward_depthwise_cuda(const Conv2dParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    status = launch(conv2d_forward_depthwise_kernel<T>, p.n * p.o * p.oh * p.ow, stream, p);
  });
  return status;
}

}  // namespace pyops
