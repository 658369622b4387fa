// A team whose warps multiply on tensor cores, by CuTe's atoms.
#pragma once

#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/mma_sm80.hpp>
#include <type_traits>

#include "gemm/block_team.cuh"

namespace pyops {

template <class State>
struct TensorTeam : BlockTeam<State> {
  using BlockTeam<State>::state;

  // c (16, 8) += a (16, 16) · b (16, 8), whose numbers lie with the threads as PTX says of
  // mma.m16n8k16.
  template <class T, class A, class B, class C>
  PYOPS_HOST_DEVICE void multiply(const A& a_of, const B& load_b, const C& c_of) {
#ifdef __CUDA_ARCH__
    using Atom =
        std::conditional_t<std::is_same_v<T, BFloat16>, cute::SM80_16x8x16_F32BF16BF16F32_TN,
                           cute::SM80_16x8x16_F32F16F16F32_TN>;
    const uint32_t (&a)[4] = a_of(state);
    uint32_t b[2];
    load_b(static_cast<int>(threadIdx.x), b);
    float (&c)[4] = c_of(state);
    Atom::fma(c[0], c[1], c[2], c[3], a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]);
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
