// A block of warpgroups on Hopper: the first loads for the others, and gives them its registers.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>

#include "attention/attention_warpgroup.h"
#include "core/cuda.cuh"
#include "core/tensor_map.cuh"
#include "gemm/warpgroup.cuh"

namespace pyops {

// Of a thread, out of 65536 on an SM: one block of a producer and two or three consumers.
constexpr uint32_t registers_of_producer(int consumers) { return consumers == 2 ? 24 : 32; }
constexpr uint32_t registers_of_consumer(int consumers) { return consumers == 2 ? 240 : 160; }

// What a thread of a consumer keeps, and how it meets the others of its warpgroup.
template <class Algorithm>
struct WarpgroupTeam {
  using State = typename Algorithm::State;
  State state;
  int thread = static_cast<int>(threadIdx.x) % kWarpgroup;

  template <class F>
  PYOPS_DEVICE void alone(const F& f) {
    f(thread, state);
  }
  template <class F>
  PYOPS_DEVICE void reduce(const F& join) {
    PYOPS_UNROLL for (int r = 0; r < 2; ++r) {
      float& x = state.rows[r];
      PYOPS_UNROLL for (int apart = 1; apart < 4; apart *= 2) {
        x = join(x, __shfl_xor_sync(0xffffffffu, x, apart));
      }
    }
  }
  // A transposition of four by four: of each pair of words that lie `apart`, a thread keeps the one
  // on its own side.
  PYOPS_DEVICE void trade() {
    PYOPS_UNROLL for (int apart = 1; apart < 4; apart *= 2) {
      const bool is_high = (thread & apart) != 0;
      PYOPS_UNROLL for (int i = 0; i < 4; ++i) {
        if ((i & apart) != 0) continue;
        uint32_t &low = state.traded[i], &high = state.traded[i + apart];
        const uint32_t got = __shfl_xor_sync(0xffffffffu, is_high ? low : high, apart);
        low = is_high ? got : low;
        high = is_high ? high : got;
      }
    }
  }
};

inline cudaError_t map_rows(const AttentionShape& p, const ConstRows& t, int64_t heads,
                            int64_t rows, int64_t columns, int box_rows, CUtensorMap* map) {
  return encode_tensor_map({p.dtype, t.data, p.batch, heads, rows, columns, t.b, t.h, t.row},
                           box_rows, map);
}

// Loads a tile of kRows rows and kD columns in boxes of kBoxRows.
template <class T, int kRows, int kD, int kBoxRows>
PYOPS_DEVICE void load_boxes(const CUtensorMap& map, int64_t b, int64_t h, int64_t row, T* tile,
                             uint64_t* full) {
  PYOPS_UNROLL for (int j = 0; j < kD; j += kBoxColumns) {
    PYOPS_UNROLL for (int i = 0; i < kRows; i += kBoxRows) {
      cute::SM90_TMA_LOAD_4D::copy(&map, full,
                                   static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL),
                                   tile + box_offset<kRows>(i, j), j, static_cast<int32_t>(row + i),
                                   static_cast<int32_t>(h), static_cast<int32_t>(b));
    }
  }
}

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

// Blocks of equal work walk the grid's stride, one block an SM, and load the next tile while the
// last is stored. Unequal ones, under a causal mask, are dealt by the hardware, as SMs get free.
template <class Algorithm, class Shared, class Arguments>
cudaError_t launch_warpgroups(void (*kernel)(Arguments), const Arguments& arguments,
                              cudaStream_t stream) {
  int device = 0, processors = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  if (status == cudaSuccess) {
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(sizeof(Shared)));
  }
  if (status != cudaSuccess) return status;
  const int64_t blocks = Algorithm::blocks(arguments.params);
  const int64_t most = arguments.params.is_causal ? INT32_MAX : processors;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks < most ? blocks : most));
  config.blockDim = dim3((1 + Algorithm::kConsumers) * kWarpgroup);
  config.dynamicSmemBytes = sizeof(Shared);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments);
}

}  // namespace pyops
