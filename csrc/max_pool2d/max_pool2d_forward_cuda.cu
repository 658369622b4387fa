// Forward on any GPU from sm_80 on: a general kernel, one thread an output, two for the usual
// square windows that read the input once and keep all of a thread's loads in flight, and three for
// other windows where 32 bits count what there is.
#include "core/cuda.cuh"
#include "max_pool2d/max_pool2d_window.h"

namespace pyops {
namespace {

// Outputs in the order of memory, so that neighbouring threads write neighbouring elements.
template <class T, class Where>
__global__ void __launch_bounds__(kBlock) max_pool2d_forward_kernel(MaxPool2dParams p) {
  const int64_t area = p.oh * p.ow, count = p.n * p.c * area;
  for (int64_t e = thread_of_grid(); e < count; e += stride_of_grid()) {
    if (p.channels_last) {
      const int64_t pixel = e / p.c;
      pool_element<T, Where>(p, pixel / area * p.c + e % p.c, pixel % area);
    } else {
      pool_element<T, Where>(p, e / area, e % area);
    }
  }
}

template <class T, bool kTaps, int kK, int kS>
__global__ void __launch_bounds__(kBlock, kBlocksWanted)
    max_pool2d_forward_strips_kernel(MaxPool2dParams p, uint32_t threads) {
  const auto thread = static_cast<uint32_t>(thread_of_grid());
  if (thread < threads) pool_strip<T, kTaps, kK, kS>(p, thread);
}

template <class T, bool kTaps, int kK, int kS>
__global__ void __launch_bounds__(kBlock, kBlocksWanted)
    max_pool2d_forward_channels_kernel(MaxPool2dParams p, uint32_t threads) {
  const auto thread = static_cast<uint32_t>(thread_of_grid());
  if (thread < threads) pool_pixel<T, kTaps, kK, kS>(p, thread);
}

template <class T>
__global__ void __launch_bounds__(kBlock, kBlocksWanted)
    max_pool2d_forward_windows_kernel(MaxPool2dParams p, uint32_t threads) {
  const auto thread = static_cast<uint32_t>(thread_of_grid());
  if (thread >= threads) return;
  p.channels_last ? pool_window_pixel<T>(p, thread) : pool_window_strip<T>(p, thread);
}

template <class T>
__global__ void __launch_bounds__(kBlock, kBlocksWanted)
    max_pool2d_forward_teams_kernel(MaxPool2dParams p, int64_t outputs) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for (int64_t o = thread_of_grid() / kLanes; o < outputs; o += stride_of_grid() / kLanes) {
    TapMaximum<T> best = pool_window_lane<T>(p, o, lane);
    PYOPS_UNROLL for (int apart = kLanes / 2; apart > 0; apart /= 2) {
      best = merged(
          best, {__shfl_xor_sync(~0u, best.value, apart), __shfl_xor_sync(~0u, best.where, apart)});
    }
    if (lane == 0) store_window<T>(p, o, best);
  }
}

// f.operator()<T, kTaps, kernel, stride>() for a square window.
template <class F>
void with_square_types(const MaxPool2dParams& p, F&& f) {
  dispatch_dtype<kTileTypes>(p.dtype, [&]<class T>(T) {
    with_square_window(p, [&]<int kK, int kS>() {
      p.argmax == Argmax::kTap ? f.template operator()<T, true, kK, kS>()
                               : f.template operator()<T, false, kK, kS>();
    });
  });
}

}  // namespace

cudaError_t max_pool2d_forward_cuda(const MaxPool2dParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  const int64_t threads = p.n * p.c * p.oh * p.ow;
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    status = p.argmax == Argmax::kTap
                 ? launch(max_pool2d_forward_kernel<T, uint8_t>, threads, stream, p)
                 : launch(max_pool2d_forward_kernel<T, int64_t>, threads, stream, p);
  });
  return status;
}

cudaError_t max_pool2d_forward_windows_cuda(const MaxPool2dParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  const int64_t threads = p.channels_last ? pixel_threads(p) : strip_threads(p);
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    status = launch(max_pool2d_forward_windows_kernel<T>, threads, stream, p, threads);
  });
  return status;
}

cudaError_t max_pool2d_forward_teams_cuda(const MaxPool2dParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  const int64_t outputs = p.n * p.c * p.oh * p.ow;
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    status = launch(max_pool2d_forward_teams_kernel<T>, kLanes * outputs, stream, p, outputs);
  });
  return status;
}

cudaError_t max_pool2d_forward_strips_cuda(const MaxPool2dParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  const int64_t threads = strip_threads(p);
  with_square_types(p, [&]<class T, bool kTaps, int kK, int kS>() {
    status =
        launch(max_pool2d_forward_strips_kernel<T, kTaps, kK, kS>, threads, stream, p, threads);
  });
  return status;
}

cudaError_t max_pool2d_forward_channels_cuda(const MaxPool2dParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  const int64_t threads = pixel_threads(p);
  with_square_types(p, [&]<class T, bool kTaps, int kK, int kS>() {
    status =
        launch(max_pool2d_forward_channels_kernel<T, kTaps, kK, kS>, threads, stream, p, threads);
  });
  return status;
}

}  // namespace pyops
