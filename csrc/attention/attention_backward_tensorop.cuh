// Launches the gradients on tensor cores.
#pragma once

#include "attention/attention_backward_tensorop_block.h"
#include "attention/attention_mask_tensorop_block.h"
#include "attention/attention_team.cuh"
#include "attention/attention_tile_team.cuh"

namespace pyops {

template <class Algorithm>
__global__ void __launch_bounds__(kBlock) attention_backward_kernel(AttentionBackwardParams p) {
  run_blocks<Algorithm>(p);
}

// Blocks on an SM at once: together of eight warps, whose sums fill its registers.
template <class Algorithm>
__global__ void __launch_bounds__(Algorithm::kThreads, 256 / Algorithm::kThreads)
    attention_backward_tensorop_kernel(AttentionBackwardParams p) {
  TileTeam<typename Algorithm::State> team;
  Algorithm(p, blockIdx.x).run(*dynamic_shared<typename Algorithm::Shared>(), team);
}

// The predicate of the table keeps the blocks within a grid.
template <class Algorithm>
cudaError_t run_on_tensor_cores(const AttentionBackwardParams& p, cudaStream_t stream) {
  constexpr int kShared = sizeof(typename Algorithm::Shared);
  const auto kernel = attention_backward_tensorop_kernel<Algorithm>;
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  if (status != cudaSuccess) return status;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(Algorithm::blocks(p)));
  config.blockDim = dim3(Algorithm::kThreads);
  config.dynamicSmemBytes = kShared;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, p);
}

template <class Step, int kD>
cudaError_t launch_backward_tensorop(const AttentionBackwardParams& p, cudaStream_t stream) {
  using Sums = AttentionRowSums<typename Step::Element>;
  cudaError_t status = launch(attention_backward_kernel<Sums>, Sums::blocks(p) * kBlock, stream, p);
  if (status == cudaSuccess && p.grad_q.data != nullptr) {
    status = run_on_tensor_cores<AttentionTensorBackward<Step, kD, /*kKeysOwn=*/false>>(p, stream);
  }
  if (status == cudaSuccess && (p.grad_k.data != nullptr || p.grad_v.data != nullptr)) {
    status = run_on_tensor_cores<AttentionTensorBackward<Step, kD, /*kKeysOwn=*/true>>(p, stream);
  }
  if (status != cudaSuccess || p.grad_mask.data == nullptr) return status;
  return run_on_tensor_cores<AttentionTensorMaskBackward<Step, kD>>(p, stream);
}

}  // namespace pyops
