// What launches for all steps of a layer share: the wait of blocks for each other, which takes all
// of them on the GPU at once.
#pragma once

#include <cuda/atomic>

#include "core/cuda.cuh"
#include "rnn/rnn_resident.h"

namespace pyops {

// The blocks that exchange states. A thread that comes first of its block releases what the block
// has stored; one that goes first acquires what the others have.
class RnnTeam {
 public:
  __device__ RnnTeam(void* arrivals, int64_t team, unsigned blocks)
      : arrivals_(static_cast<unsigned*>(arrivals)[team * kRnnTeamStride]), blocks_(blocks) {}

  __device__ void arrive() const {
    __syncthreads();
    if (threadIdx.x == 0) arrivals_.fetch_add(1, cuda::std::memory_order_release);
  }
  // Until each has arrived so many times.
  __device__ void wait(unsigned times) const {
    if (threadIdx.x == 0) {
      while (arrivals_.load(cuda::std::memory_order_acquire) < times * blocks_) {
      }
    }
    __syncthreads();
  }

 private:
  cuda::atomic_ref<unsigned, cuda::thread_scope_device> arrivals_;
  unsigned blocks_;
};

// Launches clusters of `cluster` blocks, none of which has arrived anywhere yet.
template <class... Formal, class... Actual>
cudaError_t launch_resident(void (*kernel)(Formal...), dim3 blocks, int cluster, int threads,
                            int64_t shared_bytes, void* arrivals, cudaStream_t stream,
                            const Actual&... arguments) {
  cudaError_t status =
      cudaMemsetAsync(arrivals, 0, kRnnTeams * kRnnTeamStride * sizeof(unsigned), stream);
  if (status != cudaSuccess) return status;
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(shared_bytes));
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeCooperative;
  attributes[0].val.cooperative = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, Formal(arguments)...);
}

}  // namespace pyops
