// A block of warpgroups on Hopper: the first loads for the others, and gives them its registers.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>

#include "core/cuda.cuh"
#include "core/tensor_map.cuh"
#include "gemm/warpgroup.cuh"

namespace pyops {

// Of a thread, out of 65536 on an SM: one block of a producer and two or three consumers.
constexpr uint32_t registers_of_producer(int consumers) { return consumers == 2 ? 24 : 32; }
constexpr uint32_t registers_of_consumer(int consumers) { return consumers == 2 ? 240 : 160; }

// A box of the map that begins at these coordinates, the innermost first.
template <class T>
PYOPS_DEVICE void load_box(const CUtensorMap& map, T* to, uint64_t* full, int x0, int x1, int x2,
                           int x3) {
  cute::SM90_TMA_LOAD_4D::copy(&map, full,
                               static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL), to,
                               x0, x1, x2, x3);
}

// Consumers do something by turns: a barrier each, of those who wait for it and those who give it.
// The last gives the first its first turn, as all later ones: nobody comes twice to a barrier. The
// last turn comes back to the first, so that no barrier is left with half its threads.
template <int kConsumers>
struct Turns {
  int consumer;

  __device__ explicit Turns(int consumer_) : consumer(consumer_) {
    if (consumer == kConsumers - 1) pass();
  }
  PYOPS_DEVICE void leave() const {
    if (consumer == 0) take();
  }
  PYOPS_DEVICE void take() const {
    cutlass::arch::NamedBarrier::sync(2 * kWarpgroup, static_cast<uint32_t>(consumer));
  }
  PYOPS_DEVICE void pass() const {
    const int to = consumer + 1 == kConsumers ? 0 : consumer + 1;
    cutlass::arch::NamedBarrier::arrive(2 * kWarpgroup, static_cast<uint32_t>(to));
  }
};

// Runs an algorithm's blocks. `Loader` and `Team` are made of the block's shared memory, and stand
// at the beginning of its rings.
template <class Algorithm, class Loader, class Team, class Arguments, class Shared>
PYOPS_DEVICE void run_warpgroups(const Arguments& arguments, Shared& shared) {
  constexpr int kConsumers = Algorithm::kConsumers;
  if (threadIdx.x == 0) {
    shared.init_rings();
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  // The same in all lanes, and the compiler knows.
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0);
  const int64_t blocks = Algorithm::blocks(arguments.params);
  if (warp < kWarpsOfGroup) {
    cutlass::arch::warpgroup_reg_dealloc<registers_of_producer(kConsumers)>();
    if (warp != 0 || !cute::elect_one_sync()) return;
    Loader loader(arguments, shared);
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
      Algorithm(arguments.params, block).load(loader);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<registers_of_consumer(kConsumers)>();
    const int consumer = warp / kWarpsOfGroup - 1;
    Team team(shared, consumer);
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
      Algorithm(arguments.params, block).run(consumer, team);
    }
    team.leave();
  }
}

inline cudaError_t count_processors(int* processors) {
  int device = 0;
  const cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  return cudaDeviceGetAttribute(processors, cudaDevAttrMultiProcessorCount, device);
}

// Launches as many blocks as there are, or `most`, which walk on by the grid's stride, and load for
// the next while they finish the last.
template <class Algorithm, class Shared, class Arguments>
cudaError_t launch_warpgroups(void (*kernel)(Arguments), const Arguments& arguments, int64_t most,
                              cudaStream_t stream) {
  static_assert(sizeof(Shared) <= 227 << 10);
  const cudaError_t status = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(sizeof(Shared)));
  if (status != cudaSuccess) return status;
  const int64_t blocks = Algorithm::blocks(arguments.params);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks < most ? blocks : most));
  config.blockDim = dim3((1 + Algorithm::kConsumers) * kWarpgroup);
  config.dynamicSmemBytes = sizeof(Shared);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments);
}

}  // namespace pyops
