// Gradients of convolutions on any GPU from sm_80 on, for any dtype, shape, group and layout.
// grad_x is a product for every phase of the inputs modulo the stride, which only its own taps
// reach; grad_weight is summed over stretches of the positions, and these in their order. No
// atomics, no zeroing, the same sum in every run.
#include "conv2d/conv2d_block.cuh"
#include "core/relu_mask.cuh"

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

template <class T>
__global__ void __launch_bounds__(kBlock)
    conv2d_backward_reduce_kernel(T* grad_weight, const void* parts, int64_t splits,
                                  int64_t count) {
  for (int64_t e = thread_of_grid(); e < count; e += stride_of_grid()) {
    grad_weight[e] = static_cast<T>(sum_of_splits<acc_t<T>>(parts, splits, count, e));
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    conv2d_backward_mask_kernel(const __grid_constant__ Conv2dBackwardParams p, int64_t packs) {
  mask_packs<T>(p.grad_y, p.y, p.workspace, packs);
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

cudaError_t conv2d_backward_mask_cuda(const Conv2dBackwardParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  const int64_t packs = p.n * p.o * p.oh * p.ow / pack_width(p.dtype);
  dispatch_dtype<kTileTypes>(p.dtype, [&]<class T>(T) {
    status = launch(conv2d_backward_mask_kernel<T>, packs, stream, p, packs);
  });
  return status;
}

cudaError_t conv2d_backward_reduce_cuda(const Conv2dBackwardParams& p, int64_t splits,
                                        cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  const int64_t count = p.o * p.group_c() * p.kh * p.kw;
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    status = launch(conv2d_backward_reduce_kernel<T>, count, stream, static_cast<T*>(p.grad_weight),
                    p.workspace, splits, count);
  });
  return status;
}

cudaError_t conv2d_backward_cuda(const Conv2dBackwardParams& p, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  with_layout(p, [&]<class T, bool kLast>() {
    using X = BackwardXProblem<T, kLast>;
    using Weight = BackwardWeightProblem<T, kLast>;
    if (p.grad_x != nullptr) status = launch_problem(conv2d_backward_kernel<X>, X{p}, stream);
    if (status != cudaSuccess || p.grad_weight == nullptr) return;
    const Weight weight{p, weight_splits(p)};
    status = launch_problem(conv2d_backward_kernel<Weight>, weight, stream);
    if (status == cudaSuccess) status = conv2d_backward_reduce_cuda(p, weight.splits, stream);
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
