// A team whose warps multiply on tensor cores, by CuTe's atoms.
#pragma once

#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/mma_sm80.hpp>
#include <type_traits>

#include "gemm/block_team.cuh"
#include "gemm/warp_step.h"

namespace pyops {

template <class Step>
struct WarpAtom {
  using type = cute::SM80_16x8x8_F32TF32TF32F32_TN;
};
template <>
struct WarpAtom<HalfStep<BFloat16>> {
  using type = cute::SM80_16x8x16_F32BF16BF16F32_TN;
};
template <>
struct WarpAtom<HalfStep<Float16>> {
  using type = cute::SM80_16x8x16_F32F16F16F32_TN;
};

// The words of an operand, split.
template <int kWords>
struct SplitWords {
  uint32_t big[kWords], small[kWords];

  __device__ explicit SplitWords(const uint32_t (&words)[kWords]) {
    PYOPS_UNROLL for (int x = 0; x < kWords; ++x) {
      const SplitFloat32 parts(bits_float(words[x]));
      big[x] = float_bits(parts.big);
      small[x] = float_bits(parts.small);
    }
  }
};

// A thread's part in c += a · b.
template <class Step, int kWords>
struct WarpProduct {
  using A = uint32_t[kWords];
  using B = uint32_t[2];
  using C = float[kWords];

  __device__ static void add(const A& a, const B& b, C& c) {
    if constexpr (std::is_same_v<Step, UnsplitStep>) {
      add_unsplit(a, b, c);
    } else if constexpr (std::is_same_v<Step, SplitStep>) {
      add_split(a, b, c);
    } else {
      add_whole(a, b, c);
    }
  }

 private:
  __device__ static void add_whole(const A& a, const B& b, C& c) {
    using Atom = typename WarpAtom<Step>::type;
    PYOPS_UNROLL for (int x = 0; x < kWords; x += 4) {
      Atom::fma(c[x], c[x + 1], c[x + 2], c[x + 3], a[x], a[x + 1], a[x + 2], a[x + 3], b[0], b[1],
                c[x], c[x + 1], c[x + 2], c[x + 3]);
    }
  }

  // The smallest products first.
  __device__ static void add_split(const A& a, const B& b, C& c) {
    const SplitWords<kWords> of_a(a);
    const SplitWords<2> of_b(b);
    C sums{};
    add_whole(of_a.small, of_b.big, sums);
    add_whole(of_a.big, of_b.small, sums);
    add_whole(of_a.big, of_b.big, sums);
    PYOPS_UNROLL for (int x = 0; x < kWords; ++x) c[x] += sums[x];
  }

  __device__ static void add_unsplit(const A& a, const B& b, C& c) {
    constexpr unsigned kWarp = ~0u;
    const auto lane = static_cast<int>(threadIdx.x % 32);
    const auto of_b = [&](int r, int from) { return bits_float(__shfl_sync(kWarp, b[r], from)); };
    PYOPS_UNROLL for (int x = 0; x < kWords; x += 4) {
      const auto of_a = [&](int r, int from) {
        return bits_float(__shfl_sync(kWarp, a[x + r], from));
      };
      float sums[4] = {c[x], c[x + 1], c[x + 2], c[x + 3]};
      add_unsplit_product(lane, of_a, of_b, sums);
      PYOPS_UNROLL for (int i = 0; i < 4; ++i) c[x + i] = sums[i];
    }
  }
};

template <class State>
struct TensorTeam : BlockTeam<State> {
  using BlockTeam<State>::state;

  // c += a · b, as many words of a as numbers of c (warp_step.h).
  template <class Step, class A, class B, class C>
  PYOPS_HOST_DEVICE void multiply(const A& a_of, const B& load_b, const C& c_of) {
#ifdef __CUDA_ARCH__
    uint32_t b[2];
    load_b(static_cast<int>(threadIdx.x), b);
    auto& c = c_of(state);
    WarpProduct<Step, std::extent_v<std::remove_reference_t<decltype(c)>>>::add(a_of(state), b, c);
#endif
  }

  // The thread's part of a b (16, 8) whose rows lie `stride` apart.
  template <class T>
  PYOPS_HOST_DEVICE static void load_transposed(const T* from, int stride, int lane,
                                                uint32_t (&to)[2]) {
#ifdef __CUDA_ARCH__
    cute::SM75_U16x4_LDSM_T::copy(
        *reinterpret_cast<const cute::uint128_t*>(from + lane % 16 * stride), to[0], to[1]);
#endif
  }
};

}  // namespace pyops
