// What every CUDA kernel file needs: how many threads, launching them, and the type they compute
// in. Whatever goes wrong comes back as the cudaError_t of the launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/dtype.h"
#include "core/pack.h"

namespace pyops {

inline constexpr int kBlock = 256;  // threads
// Of blocks on an SM at once: half of its threads hide the memory's latency where each has several
// loads in flight. Without a word on it, the compiler saves registers and spills to have more.
inline constexpr int kBlocksWanted = 4;

// Launches at least `threads` threads in blocks of kBlock, or as many as a grid can have: kernels
// that may see more walk on by stride_of_grid().
template <class... Formal, class... Actual>
cudaError_t launch(void (*kernel)(Formal...), int64_t threads, cudaStream_t stream,
                   const Actual&... arguments) {
  constexpr int64_t kMostBlocks = INT32_MAX;
  const int64_t blocks = (threads + kBlock - 1) / kBlock;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks));
  config.blockDim = dim3(kBlock);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, Formal(arguments)...);
}

// The block's dynamic shared memory, from its beginning.
template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(16) char dynamic_storage[];
  return reinterpret_cast<T*>(dynamic_storage);
}

__device__ inline int64_t thread_of_grid() { return int64_t{blockIdx.x} * kBlock + threadIdx.x; }
__device__ inline int64_t stride_of_grid() { return int64_t{gridDim.x} * kBlock; }

}  // namespace pyops
