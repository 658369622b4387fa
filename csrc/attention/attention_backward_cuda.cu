// The gradients of attention on any GPU from sm_80 on, for any dtype, shape, stride and mask: a
// kernel for each, that nothing else writes to. No atomics, the same sums in every run.
#include "attention/attention_backward_block.h"
#include "attention/attention_team.cuh"

namespace pyops {
namespace {

// Of blocks on an SM at once: the sums of a wide chunk take half of its registers.
constexpr int kBlocksOfTiles = 2;

template <class Algorithm>
__global__ void __launch_bounds__(kBlock, kBlocksOfTiles)
    attention_backward_kernel(AttentionBackwardParams p) {
  run_blocks<Algorithm>(p);
}

template <class Algorithm>
cudaError_t run(const AttentionBackwardParams& p, cudaStream_t stream) {
  return launch(attention_backward_kernel<Algorithm>, Algorithm::blocks(p) * kBlock, stream, p);
}

template <class T, GradientOf kOf>
cudaError_t run_gradient(const AttentionBackwardParams& p, int64_t columns, const Rows& grad,
                         cudaStream_t stream) {
  if (grad.data == nullptr || columns == 0) return cudaSuccess;
  // Scores are computed again for every chunk of the columns.
  return columns <= AttentionBlock<T, 1>::kChunk ? run<AttentionBackward<T, 1, kOf>>(p, stream)
                                                 : run<AttentionBackward<T, 2, kOf>>(p, stream);
}

template <class T>
cudaError_t run_all(const AttentionBackwardParams& p, cudaStream_t stream) {
  const bool of_scores =
      p.grad_q.data != nullptr || p.grad_k.data != nullptr || p.grad_mask.data != nullptr;
  cudaError_t status = of_scores ? run<AttentionExactRowSums<T>>(p, stream) : cudaSuccess;
  if (status != cudaSuccess) return status;
  status = run_gradient<T, GradientOf::kQuery>(p, p.dim, p.grad_q, stream);
  if (status != cudaSuccess) return status;
  status = run_gradient<T, GradientOf::kKey>(p, p.dim, p.grad_k, stream);
  if (status != cudaSuccess) return status;
  status = run_gradient<T, GradientOf::kValue>(p, p.value_dim, p.grad_v, stream);
  if (status != cudaSuccess || p.grad_mask.data == nullptr) return status;
  return run<AttentionMaskBackward<T>>(p, stream);
}

}  // namespace

cudaError_t attention_backward_cuda(const AttentionBackwardParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype(p.dtype, [&]<class T>(T) { status = run_all<T>(p, stream); });
  return status;
}

}  // namespace pyops
