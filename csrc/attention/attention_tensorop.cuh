// Launches the forward on tensor cores.
#pragma once

#include "attention/attention_tensorop_block.h"
#include "gemm/tensor_team.cuh"

namespace pyops {

template <class State>
struct WarpTeam : TensorTeam<State> {
  using TensorTeam<State>::state;

  template <class F>
  PYOPS_HOST_DEVICE void reduce(const F& join) {
#ifdef __CUDA_ARCH__
    PYOPS_UNROLL for (float& x : state.rows) {
      PYOPS_UNROLL for (int apart = 1; apart < 4; apart *= 2) {
        x = join(x, __shfl_xor_sync(0xffffffffu, x, apart));
      }
    }
#endif
  }
};

// Of blocks on an SM at once: of three a thread has 168 registers, of two 255.
template <class Step, int kD>
inline constexpr int kBlocksOfForward = Step::kInWord == 2 && kD <= 64 ? 3 : 2;

template <class Step, int kD>
__global__ void __launch_bounds__(AttentionTensorForward<Step, kD>::kThreads,
                                  (kBlocksOfForward<Step, kD>))
    attention_forward_tensorop_kernel(AttentionParams p) {
  using Algorithm = AttentionTensorForward<Step, kD>;
  auto& shared = *dynamic_shared<typename Algorithm::Shared>();
  WarpTeam<typename Algorithm::State> team;
  for (int64_t block = blockIdx.x; block < Algorithm::blocks(p); block += gridDim.x) {
    Algorithm(p, block).run(shared, team);
  }
}

template <class Step, int kD>
cudaError_t launch_forward_tensorop(const AttentionParams& p, cudaStream_t stream) {
  using Algorithm = AttentionTensorForward<Step, kD>;
  constexpr int kShared = sizeof(typename Algorithm::Shared);
  const auto kernel = attention_forward_tensorop_kernel<Step, kD>;
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  if (status != cudaSuccess) return status;
  const int64_t blocks = Algorithm::blocks(p);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks < INT32_MAX ? blocks : INT32_MAX));
  config.blockDim = dim3(Algorithm::kThreads);
  config.dynamicSmemBytes = kShared;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, p);
}

}  // namespace pyops
