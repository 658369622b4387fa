// Attention on any GPU from sm_80 on, for any dtype, shape, stride and mask, without tensor cores:
// the oracle of faster rows. Products are in the type that sums are in.
#include "attention/attention_forward_block.h"
#include "attention/attention_team.cuh"

namespace pyops {
namespace {

// Of blocks on an SM at once: the sums of a wide chunk take half of its registers.
constexpr int kBlocksOfTiles = 2;

template <class T, int kWide>
__global__ void __launch_bounds__(kBlock, kBlocksOfTiles)
    attention_forward_kernel(AttentionParams p) {
  run_blocks<AttentionForward<T, kWide>>(p);
}

__global__ void __launch_bounds__(kBlock)
    attention_dropout_kernel(const int64_t* seed, double p, int64_t rows, int64_t keys,
                             bool* kept) {
  const baseline::Dropout dropout(static_cast<uint64_t>(*seed), p);
  for (int64_t e = thread_of_grid(); e < rows * keys; e += stride_of_grid()) {
    float factor[1];
    dropout.factors_apart(e / keys, e % keys, factor);
    kept[e] = factor[0] != 0;
  }
}

template <class T, int kWide>
cudaError_t launch_forward(const AttentionParams& p, cudaStream_t stream) {
  const int64_t blocks = AttentionForward<T, kWide>::blocks(p);
  return launch(attention_forward_kernel<T, kWide>, blocks * kBlock, stream, p);
}

}  // namespace

cudaError_t attention_forward_cuda(const AttentionParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    // Scores are computed again for every chunk of the values.
    status = p.value_dim <= AttentionBlock<T, 1>::kChunk ? launch_forward<T, 1>(p, stream)
                                                         : launch_forward<T, 2>(p, stream);
  });
  return status;
}

cudaError_t attention_dropout_cuda(const int64_t* seed, double p, int64_t rows, int64_t keys,
                                   bool* kept, cudaStream_t stream) {
  return launch(attention_dropout_kernel, rows * keys, stream, seed, p, rows, keys, kept);
}

}  // namespace pyops
