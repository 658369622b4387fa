// Convolution, ReLU and max pooling on any GPU from sm_80 on. Where windows are 2x2 and apart, a
// thread's four rows of a product are a window: it pools what it has in registers. Otherwise the
// convolution is stored in the workspace and pooled from there, by packs where channels come last.
#include "conv2d/conv2d_block.cuh"
#include "conv2d/conv2d_pool_channels.h"
#include "conv2d/conv2d_sm90.h"

namespace pyops {
namespace {

template <class Problem>
__global__ void __launch_bounds__(kBlock, kBlocksOfProducts)
    conv2d_pool_forward_kernel(const __grid_constant__ Problem problem, int64_t most) {
  multiply(problem, most, [](const auto& product, int64_t tile, const auto& sums) {
    store_windows<BlockOf<Problem>>(product, tile, static_cast<int>(threadIdx.x), sums);
  });
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    conv2d_pool_forward_windows_kernel(const __grid_constant__ Conv2dPoolParams p) {
  const int64_t count = p.n * p.o * p.pooled_h * p.pooled_w;
  for (int64_t e = thread_of_grid(); e < count; e += stride_of_grid()) pool_element<T>(p, e);
}

template <class T>
__global__ void __launch_bounds__(kBlock, kBlocksWanted)
    conv2d_pool_forward_channels_kernel(const __grid_constant__ Conv2dPoolParams p,
                                        uint32_t packs) {
  const auto i = static_cast<uint32_t>(thread_of_grid());
  if (i < packs) pool_pack<T>(p, i);
}

template <class T>
__global__ void __launch_bounds__(kBlock, kBlocksWanted)
    conv2d_pool_backward_channels_kernel(const __grid_constant__ Conv2dPoolBackwardParams p,
                                         int packs) {
  const int64_t i = thread_of_grid();
  if (i < packs) unpool_pack<T>(p, static_cast<int>(i));
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    conv2d_pool_backward_kernel(const __grid_constant__ Conv2dPoolBackwardParams p) {
  const int64_t count = p.n * p.o * p.oh * p.ow;
  for (int64_t e = thread_of_grid(); e < count; e += stride_of_grid()) unpool_element<T>(p, e);
}

// What the workspace has of the convolution. So few images are never too many packs.
cudaError_t pool(const Conv2dPoolParams& p, bool by_packs, cudaStream_t stream) {
  const int64_t pooled = p.n * p.o * p.pooled_h * p.pooled_w;
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    const int64_t packs = pooled / Pack<T>::kWidth;
    status = by_packs ? launch(conv2d_pool_forward_channels_kernel<T>, packs, stream, p, packs)
                      : launch(conv2d_pool_forward_windows_kernel<T>, pooled, stream, p);
  });
  return status;
}

// The convolution into the workspace by a kernel of its own, then the windows.
cudaError_t convolve_and_pool(cudaError_t (*convolve)(const Conv2dParams&, cudaStream_t),
                              const Conv2dPoolParams& whole, cudaStream_t stream) {
  const bool by_packs = is_pooled_by_packs(whole);
  return for_images(whole, images_of_pooling(whole), [&](const Conv2dPoolParams& p) {
    Conv2dParams convolution = p;
    convolution.y = p.workspace;
    const cudaError_t status = convolve(convolution, stream);
    return status != cudaSuccess ? status : pool(p, by_packs, stream);
  });
}

}  // namespace

cudaError_t conv2d_pool_forward_fused_cuda(const Conv2dPoolParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  with_layout(p, [&]<class T, bool kLast>() {
    using Problem = PoolProblem<T, kLast>;
    status = launch_problem(conv2d_pool_forward_kernel<Problem>, Problem{p}, stream);
  });
  return status;
}

cudaError_t conv2d_pool_forward_cuda(const Conv2dPoolParams& p, cudaStream_t stream) {
  return convolve_and_pool(
      has_single_channels(p) ? conv2d_forward_depthwise_cuda : conv2d_forward_cuda, p, stream);
}

cudaError_t conv2d_pool_forward_sm90(const Conv2dPoolParams& p, cudaStream_t stream) {
  return convolve_and_pool(conv2d_forward_sm90, p, stream);
}
cudaError_t conv2d_pool_forward_tensorop_cuda(const Conv2dPoolParams& p, cudaStream_t stream) {
  return convolve_and_pool(conv2d_forward_tensorop_cuda, p, stream);
}
cudaError_t conv2d_pool_forward_tf32_cuda(const Conv2dPoolParams& p, cudaStream_t stream) {
  return convolve_and_pool(conv2d_forward_tf32_cuda, p, stream);
}
cudaError_t conv2d_pool_forward_3xtf32_cuda(const Conv2dPoolParams& p, cudaStream_t stream) {
  return convolve_and_pool(conv2d_forward_3xtf32_cuda, p, stream);
}

cudaError_t conv2d_pool_backward_channels_cuda(const Conv2dPoolBackwardParams& p,
                                               cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    status = for_images(p, images_of_packs(p), [&](const Conv2dPoolBackwardParams& part) {
      const int64_t packs = part.n * part.o * part.oh * part.ow / Pack<T>::kWidth;
      return launch(conv2d_pool_backward_channels_kernel<T>, packs, stream, part, packs);
    });
  });
  return status;
}

cudaError_t conv2d_pool_backward_cuda(const Conv2dPoolBackwardParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    status = launch(conv2d_pool_backward_kernel<T>, p.n * p.o * p.oh * p.ow, stream, p);
  });
  return status;
}

}  // namespace pyops
