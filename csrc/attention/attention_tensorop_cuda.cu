// Attention in half precision on the tensor cores of any GPU from sm_80 on.
#include "attention/attention_half.cuh"
#include "attention/attention_team.cuh"
#include "attention/attention_tensorop_block.h"
#include "gemm/tensor_team.cuh"

namespace pyops {
namespace {

template <class State>
struct WarpTeam : TensorTeam<State> {
  using TensorTeam<State>::state;

  template <class F>
  PYOPS_HOST_DEVICE void reduce(const F& join) {
#ifdef __CUDA_ARCH__
    PYOPS_UNROLL for (int r = 0; r < 2; ++r) {
      float& x = state.rows[r];
      PYOPS_UNROLL for (int apart = 1; apart < 4; apart *= 2) {
        x = join(x, __shfl_xor_sync(0xffffffffu, x, apart));
      }
    }
#endif
  }
};

// Of blocks on an SM at once: as many as the sums of kD columns leave registers for.
constexpr int blocks_wanted(int d) { return d > 64 ? 2 : 3; }

template <class T, int kD>
__global__ void __launch_bounds__(AttentionTensorForward<T, kD>::kThreads, blocks_wanted(kD))
    attention_forward_tensorop_kernel(AttentionParams p) {
  using Algorithm = AttentionTensorForward<T, kD>;
  run_blocks<Algorithm, WarpTeam<typename Algorithm::State>>(p);
}

template <class T, int kD>
cudaError_t launch_forward(const AttentionParams& p, cudaStream_t stream) {
  using Algorithm = AttentionTensorForward<T, kD>;
  const int64_t blocks = Algorithm::blocks(p);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks < INT32_MAX ? blocks : INT32_MAX));
  config.blockDim = dim3(Algorithm::kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, attention_forward_tensorop_kernel<T, kD>, p);
}

}  // namespace

cudaError_t attention_forward_tensorop_cuda(const AttentionParams& p, cudaStream_t stream) {
  return with_half_width(p, [&]<class T, int kD>() { return launch_forward<T, kD>(p, stream); });
}

}  // namespace pyops
