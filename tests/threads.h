// What the threads of a GPU compute, phase by phase on the CPU.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "gemm/block_product.h"

namespace pyops {

template <class Product>
void multiply(const Product& product) {
  using Block = BlockProduct<Product>;
  const auto panels = std::make_unique<typename Block::Panels>();
  for (int64_t tile = 0; tile < Block::tiles(product); ++tile) {
    std::vector<typename Block::Piece> sums(Block::kThreads);
    for (int64_t q = 0; q < product.depth; q += Block::kDepth) {
      for (int t = 0; t < Block::kThreads; ++t) Block::load(product, tile, q, t, *panels);
      for (int t = 0; t < Block::kThreads; ++t) Block::accumulate(*panels, t, sums[t]);
    }
    for (int t = 0; t < Block::kThreads; ++t) Block::store(product, tile, t, sums[t]);
  }
}

}  // namespace pyops
