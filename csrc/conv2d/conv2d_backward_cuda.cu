// Gradients of convolutions on any GPU from sm_80 on, for any dtype, shape, group and layout.
// grad_x is a product for every phase of the inputs modulo the stride, which only its own taps
// reach; grad_weight is summed over stretches of the positions, and these in their order. No
// atomics, no zeroing, the same sum in every run.
#include "conv2d/conv2d_block.cuh"

namespace pyops {
namespace {

template <class Problem>
__global__ void __launch_bounds__(kBlock, kBlocksOfProducts)
    conv2d_backward_kernel(const __grid_constant__ Problem problem, int64_t most) {
  multiply(problem, most);
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    conv2d_backward_depthwise_kernel(const __grid_constant__ Conv2dBackwardParams p) {
  const int64_t count = p.n * p.c * p.h * p.w;
  for (int64_t e = thread_of_grid(); e < count; e += stride_of_grid()) {
    depthwise_gradient_element<T>(p, e);
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    conv2d_backward_positions_kernel(const __grid_constant__ Conv2dBackwardParams p,
                                     PositionSums sums) {
  for (int64_t e = thread_of_grid(); e < sums.threads(); e += stride_of_grid()) {
    sum_positions<T>(p, sums, e);
  }
}
template <class T>
__global__ void __launch_bounds__(kBlock)
    conv2d_backward_finish_kernel(const __grid_constant__ Conv2dBackwardParams p,
                                  PositionSums sums) {
  for (int64_t e = thread_of_grid(); e < sums.count(); e += stride_of_grid()) {
    finish_positions<T>(p, sums, e);
  }
}

cudaError_t launch_sums(const Conv2dBackwardParams& p, bool weight, bool bias,
                        cudaStream_t stream) {
  const PositionSums sums = position_sums(p, weight, bias);
  if (sums.count() == 0) return cudaSuccess;
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    status = launch(conv2d_backward_positions_kernel<T>, sums.threads(), stream, p, sums);
    if (status != cudaSuccess) return;
    status = launch(conv2d_backward_finish_kernel<T>, sums.count(), stream, p, sums);
  });
  return status;
}

}  // namespace

cudaError_t conv2d_backward_cuda(const Conv2dBackwardParams& p, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  with_layout(p, [&]<class T, bool kLast>() {
    using X = BackwardXProblem<T, kLast>;
    using Weight = BackwardWeightProblem<T, kLast>;
    if (p.grad_x != nullptr) status = launch_problem(conv2d_backward_kernel<X>, X{p}, stream);
    if (status != cudaSuccess || p.grad_weight == nullptr) return;
    const Weight weight{p, weight_splits(p)};
    status = launch_problem(conv2d_backward_kernel<Weight>, weight, stream);
    if (status != cudaSuccess) return;
    status =
        add_parts_cuda(p.dtype, p.grad_weight, p.workspace, weight.splits, p.weights(), stream);
  });
  if (status != cudaSuccess || p.grad_bias == nullptr) return status;
  return launch_sums(p, false, true, stream);
}

cudaError_t conv2d_backward_depthwise_cuda(const Conv2dBackwardParams& p, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    if (p.grad_x == nullptr) return;
    status = launch(conv2d_backward_depthwise_kernel<T>, p.n * p.c * p.h * p.w, stream, p);
  });
  if (status != cudaSuccess) return status;
  return launch_sums(p, p.grad_weight != nullptr, p.grad_bias != nullptr, stream);
}

}  // namespace pyops
