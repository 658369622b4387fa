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

// The threads of a team (gemm/block_team.cuh), one after the other.
template <class State>
struct LoopTeam {
  std::vector<State> states{256};

  State& of(int thread) { return states[static_cast<size_t>(thread)]; }

  template <class F>
  void each(const F& f) {
    for (int t = 0; t < static_cast<int>(states.size()); ++t) f(t, of(t));
  }
  template <class F>
  void alone(const F& f) {
    each(f);
  }
};

// Tensor cores in slow motion, a warp of 32 states after the other.
template <class State>
struct TensorLoopTeam : LoopTeam<State> {
  using LoopTeam<State>::states;

  template <class T>
  static float half_of(uint32_t pair, int i) {
    T x;
    x.bits = static_cast<uint16_t>(pair >> 16 * i);
    return static_cast<float>(x);
  }

  // mma.m16n8k16: c (16, 8) += a (16, 16) · b (16, 8).
  template <class T, class A, class B, class C>
  void multiply(const A& a_of, const B& load_b, const C& c_of) {
    for (size_t warp = 0; warp < states.size(); warp += 32) {
      float a[16][16], b[16][8];
      for (int lane = 0; lane < 32; ++lane) {
        uint32_t of_b[2];
        load_b(static_cast<int>(warp) + lane, of_b);
        for (int i = 0; i < 2; ++i) {
          const int k = lane % 4 * 2 + i;
          for (int x = 0; x < 4; ++x) {
            a[lane / 4 + x % 2 * 8][k + x / 2 * 8] = half_of<T>(a_of(states[warp + lane])[x], i);
          }
          for (int x = 0; x < 2; ++x) b[k + x * 8][lane / 4] = half_of<T>(of_b[x], i);
        }
      }
      for (int lane = 0; lane < 32; ++lane) {
        for (int x = 0; x < 4; ++x) {
          float& c = c_of(states[warp + lane])[x];
          for (int k = 0; k < 16; ++k) c += a[lane / 4 + x / 2 * 8][k] * b[k][lane % 4 * 2 + x % 2];
        }
      }
    }
  }

  // ldmatrix.x2.trans
  template <class T>
  static void load_transposed(const T* from, int stride, int lane, uint32_t (&to)[2]) {
    for (int x = 0; x < 2; ++x) {
      const T* at = from + (x * 8 + lane % 4 * 2) * stride + lane / 4;
      to[x] = at[0].bits | static_cast<uint32_t>(at[stride].bits) << 16;
    }
  }
};

}  // namespace pyops
