// BlockProduct on a GPU: a block of threads for each tile, or as many as a grid can have.
#pragma once

#include "core/cuda.cuh"
#include "gemm/block_product.h"

namespace pyops {

// Of blocks on an SM at once: with more, the addresses of both operands do not fit the registers.
inline constexpr int kBlocksOfProducts = 2;

template <class Product>
__device__ void multiply_blocks(const Product& product) {
  using Block = BlockProduct<Product>;
  static_assert(Block::kThreads == kBlock);
  __shared__ typename Block::Panels panels;
  const auto thread = static_cast<int>(threadIdx.x);
  for (int64_t tile = blockIdx.x; tile < Block::tiles(product); tile += gridDim.x) {
    typename Block::Piece sums{};
    for (int64_t q = 0; q < product.depth; q += Block::kDepth) {
      Block::load(product, tile, q, thread, panels);
      __syncthreads();
      Block::accumulate(panels, thread, sums);
      __syncthreads();
    }
    Block::store(product, tile, thread, sums);
  }
}

// A product without elements is no error.
template <class Product>
cudaError_t launch_product(void (*kernel)(Product), const Product& product, cudaStream_t stream) {
  const int64_t tiles = BlockProduct<Product>::tiles(product);
  return tiles == 0 ? cudaSuccess : launch(kernel, tiles * kBlock, stream, product);
}

}  // namespace pyops
