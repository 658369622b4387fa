// A block of threads at the tiles of a batch of products.
#pragma once

#include "conv2d/conv2d_problem.h"
#include "core/cuda.cuh"

namespace pyops {

// Of blocks on an SM at once: with more, the coordinates of both operands do not fit the registers.
inline constexpr int kBlocksOfProducts = 2;

template <class Problem>
using ProductOf = decltype(std::declval<const Problem&>().product(0));
template <class Problem>
using BlockOf = BlockProduct<ProductOf<Problem>>;

// The sums of a tile.
template <class Block, class Product>
__device__ inline typename Block::Piece multiply_tile(const Product& product, int64_t tile) {
  using A = std::remove_cvref_t<decltype(product.a_operand())>;
  using B = std::remove_cvref_t<decltype(product.b_operand())>;
  __shared__ typename Block::Panels panels;
  const auto thread = static_cast<int>(threadIdx.x);
  const PanelFeed<A, Block> a(product.a_operand(), Block::row_of(product, tile), product.rows,
                              thread);
  const PanelFeed<B, Block> b(product.b_operand(), Block::column_of(product, tile), product.columns,
                              thread);
  typename Block::Piece sums{};
  for (int64_t q = 0; q < product.depth; q += Block::kDepth) {
    a.load(product.a_operand(), q, product.depth, panels.a);
    b.load(product.b_operand(), q, product.depth, panels.b);
    __syncthreads();
    Block::accumulate(panels, thread, sums);
    __syncthreads();
  }
  return sums;
}

// store(product, tile, sums) for every tile; a product has at most `most` of them.
template <class Problem, class Store>
__device__ inline void multiply(const Problem& problem, int64_t most, Store&& store) {
  using Block = BlockOf<Problem>;
  static_assert(Block::kThreads == kBlock);
  for (int64_t i = blockIdx.x; i < problem.products() * most; i += gridDim.x) {
    const auto product = problem.product(i / most);
    const int64_t tile = i % most;
    if (tile < Block::tiles(product)) store(product, tile, multiply_tile<Block>(product, tile));
  }
}

template <class Problem>
__device__ inline void multiply(const Problem& problem, int64_t most) {
  multiply(problem, most, [](const auto& product, int64_t tile, const auto& sums) {
    BlockOf<Problem>::store(product, tile, static_cast<int>(threadIdx.x), sums);
  });
}

template <class Problem>
cudaError_t launch_problem(void (*kernel)(Problem, int64_t), const Problem& problem,
                           cudaStream_t stream) {
  const int64_t most = BlockOf<Problem>::tiles(problem.product(0));
  return launch(kernel, problem.products() * most * kBlock, stream, problem, most);
}

// f.operator()<T, channels last>()
template <class Params, class F>
void with_layout(const Params& p, F&& f) {
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    p.channels_last ? f.template operator()<T, true>() : f.template operator()<T, false>();
  });
}

}  // namespace pyops
