// Backward on any GPU from sm_80 on: every element of grad_x gathers from the windows over it, in
// their order. No atomics, no zeroing, the same sum in every run.
#include "core/cuda.cuh"
#include "max_pool2d/max_pool2d_window.h"

namespace pyops {
namespace {

// Inputs in the order of memory, so that neighbouring threads write neighbouring elements.
template <class T, class Where>
__global__ void __launch_bounds__(kBlock) max_pool2d_backward_kernel(MaxPool2dBackwardParams p) {
  const int64_t area = p.h.size * p.w.size, count = p.n * p.c * area;
  for (int64_t e = thread_of_grid(); e < count; e += stride_of_grid()) {
    const int64_t pixel = p.channels_last ? e / p.c : e, position = pixel % area;
    const int64_t plane = p.channels_last ? pixel / area * p.c + e % p.c : pixel / area;
    gather_element<T, Where>(p, plane, position / p.w.size, position % p.w.size);
  }
}

template <class T, int kK, int kS>
__global__ void __launch_bounds__(kBlock)
    max_pool2d_backward_strips_kernel(MaxPool2dBackwardParams p, uint32_t threads) {
  const auto thread = static_cast<uint32_t>(thread_of_grid());
  if (thread < threads) gather_strip<T, kK, kS>(p, thread);
}

template <class T, int kK, int kS>
__global__ void __launch_bounds__(kBlock, kBlocksWanted)
    max_pool2d_backward_channels_kernel(MaxPool2dBackwardParams p, uint32_t threads) {
  const auto thread = static_cast<uint32_t>(thread_of_grid());
  if (thread < threads) gather_pixel<T, kK, kS>(p, thread);
}

template <class T>
__global__ void __launch_bounds__(kBlock, kBlocksWanted)
    max_pool2d_backward_windows_kernel(MaxPool2dBackwardParams p, uint32_t threads) {
  const auto thread = static_cast<uint32_t>(thread_of_grid());
  if (thread >= threads) return;
  p.channels_last ? gather_window_pixel<T>(p, thread) : gather_window_strip<T>(p, thread);
}

// f.operator()<T, kernel, stride>() for a square window.
template <class F>
void with_square_types(const MaxPool2dBackwardParams& p, F&& f) {
  dispatch_dtype<kTileTypes>(p.dtype, [&]<class T>(T) {
    with_square_window(p, [&]<int kK, int kS>() { f.template operator()<T, kK, kS>(); });
  });
}

}  // namespace

cudaError_t max_pool2d_backward_cuda(const MaxPool2dBackwardParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  const int64_t threads = p.n * p.c * p.h.size * p.w.size;
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    status = p.argmax == Argmax::kTap
                 ? launch(max_pool2d_backward_kernel<T, uint8_t>, threads, stream, p)
                 : launch(max_pool2d_backward_kernel<T, int64_t>, threads, stream, p);
  });
  return status;
}

cudaError_t max_pool2d_backward_windows_cuda(const MaxPool2dBackwardParams& p,
                                             cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  const int64_t threads = p.channels_last ? pixel_threads(p) : strip_threads(p);
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    status = launch(max_pool2d_backward_windows_kernel<T>, threads, stream, p, threads);
  });
  return status;
}

cudaError_t max_pool2d_backward_strips_cuda(const MaxPool2dBackwardParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  const int64_t threads = strip_threads(p);
  with_square_types(p, [&]<class T, int kK, int kS>() {
    status = launch(max_pool2d_backward_strips_kernel<T, kK, kS>, threads, stream, p, threads);
  });
  return status;
}

cudaError_t max_pool2d_backward_channels_cuda(const MaxPool2dBackwardParams& p,
                                              cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  const int64_t threads = pixel_threads(p);
  with_square_types(p, [&]<class T, int kK, int kS>() {
    status = launch(max_pool2d_backward_channels_kernel<T, kK, kS>, threads, stream, p, threads);
  });
  return status;
}

}  // namespace pyops
