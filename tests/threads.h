// What the threads of a GPU compute, phase by phase on the CPU.
#pragma once

#include <cstdint>
#include <iterator>
#include <memory>
#include <type_traits>
#include <vector>

#include "gemm/block_product.h"
#include "gemm/warp_step.h"
#include "tensor_core.h"

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
  template <class F>
  bool all(const F& f) {
    bool are = true;
    each([&](int thread, State& state) { are = f(thread, state) && are; });
    return are;
  }
};

// Of a warp's words, whose depth lies as PTX says of mma.m16n8k16 and mma.m16n8k8: a (16, depth)
// and b (depth, 8).
template <class Step>
struct WarpMatrices {
  static constexpr int kDepth = Step::kDepth, kInWord = kDepth / 8;
  float a[16][kDepth], b[8][kDepth];  // b by its columns

  template <class OfA>
  WarpMatrices(const OfA& of_a, const uint32_t (&of_b)[32][2]) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < kInWord; ++i) {
        const int k = lane % 4 * kInWord + i;
        for (int x = 0; x < 4; ++x) {
          a[lane / 4 + x % 2 * 8][k + x / 2 * kDepth / 2] = number(of_a(lane, x), i);
        }
        for (int x = 0; x < 2; ++x) b[lane / 4][k + x * kDepth / 2] = number(of_b[lane][x], i);
      }
    }
  }

  static float number(uint32_t word, [[maybe_unused]] int i) {
    if constexpr (kInWord == 1) {
      return bits_float(word);
    } else {
      typename Step::Element x;
      x.bits = static_cast<uint16_t>(word >> 16 * i);
      return static_cast<float>(x);
    }
  }

  void add(int row, int column, float& c) const {
    const float *const x = a[row], *const y = b[column];
    if constexpr (std::is_same_v<Step, Tf32Step>) {
      c = add_on_tensor_core(c, x, y, kDepth);
    } else if constexpr (std::is_same_v<Step, SplitStep>) {
      c += split_product(x, y);
    } else {
      for (int k = 0; k < kDepth; ++k) c += x[k] * y[k];
    }
  }

  static float split_product(const float* x, const float* y) {
    float big[2][kDepth], small[2][kDepth];
    for (int k = 0; k < kDepth; ++k) {
      const SplitFloat32 of_x(x[k]), of_y(y[k]);
      big[0][k] = of_x.big, small[0][k] = of_x.small;
      big[1][k] = of_y.big, small[1][k] = of_y.small;
    }
    float sum = add_on_tensor_core(0, small[0], big[1], kDepth);
    sum = add_on_tensor_core(sum, big[0], small[1], kDepth);
    return add_on_tensor_core(sum, big[0], big[1], kDepth);
  }
};

// Tensor cores in slow motion, a warp of 32 states after the other.
template <class State>
struct TensorLoopTeam : LoopTeam<State> {
  using LoopTeam<State>::states;

  // c += a · b of every warp, 16 rows after the other (gemm/warp_step.h).
  template <class Step, class A, class B, class C>
  void multiply(const A& a_of, const B& load_b, const C& c_of) {
    constexpr int kNumbers = std::extent_v<std::remove_reference_t<decltype(c_of(states[0]))>>;
    for (size_t warp = 0; warp < states.size(); warp += 32) {
      uint32_t of_b[32][2];
      for (int lane = 0; lane < 32; ++lane) load_b(static_cast<int>(warp) + lane, of_b[lane]);
      for (int m = 0; m < kNumbers; m += 4) {
        const auto of_a = [&](int lane, int x) { return a_of(states[warp + lane])[m + x]; };
        WarpMatrices<Step> matrices(of_a, of_b);
        for (int lane = 0; lane < 32; ++lane) {
          for (int x = 0; x < 4; ++x) {
            matrices.add(lane / 4 + x / 2 * 8, lane % 4 * 2 + x % 2,
                         c_of(states[warp + lane])[m + x]);
          }
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

// The same of attention_tensorop_tile.h.
template <class State>
struct TileLoopTeam : TensorLoopTeam<State> {
  using TensorLoopTeam<State>::states;
  int64_t bank_conflicts = 0;

  explicit TileLoopTeam(int threads) { states.resize(static_cast<size_t>(threads)); }

  // ldmatrix.x4. Rows are read eight at a time, in one go where they meet different banks.
  template <bool kTransposed, class RowAt, class Words>
  void load_matrices(const RowAt& row_at, const Words& words_of) {
    for (int warp = 0; warp < static_cast<int>(states.size()); warp += 32) {
      uint16_t rows[32][8];
      for (int matrix = 0; matrix < 4; ++matrix) {
        unsigned banks = 0;  // in groups of four
        for (int i = matrix * 8; i < matrix * 8 + 8; ++i) {
          const void* const row = row_at(warp + i);
          memcpy(rows[i], row, sizeof rows[i]);
          banks |= 1u << reinterpret_cast<uintptr_t>(row) / 16 % 8;
        }
        bank_conflicts += banks != 0xff;
      }
      for (int lane = 0; lane < 32; ++lane) {
        uint32_t* const to = words_of(states[static_cast<size_t>(warp + lane)]);
        for (int x = 0; x < 4; ++x) {
          const auto* const matrix = &rows[x * 8];
          const int i = lane / 4, j = lane % 4 * 2;
          to[x] = kTransposed ? matrix[j][i] | uint32_t{matrix[j + 1][i]} << 16
                              : matrix[i][j] | uint32_t{matrix[i][j + 1]} << 16;
        }
      }
    }
  }

  template <class T>
  static void copy_pack(T* to, const T* from, bool exists) {
    exists ? memcpy(static_cast<void*>(to), from, 16) : memset(static_cast<void*>(to), 0, 16);
  }
  static void copy_number(float* to, const float* from, bool exists) { *to = exists ? *from : 0; }
  void arrive() {}
  void await() {}
  template <class F>
  bool all_of_warp(const F& f) {
    return this->all(f);
  }
  void forget() {}
};

}  // namespace pyops
