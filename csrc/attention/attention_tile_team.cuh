// A team for attention_tensorop_tile.h: its threads copy to shared memory, and read from it, more
// than a number at a time.
#pragma once

#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm80.hpp>

#include "gemm/tensor_team.cuh"

namespace pyops {

template <class State>
struct TileTeam : TensorTeam<State> {
  using TensorTeam<State>::state;
  int thread;

  __device__ TileTeam() : thread(static_cast<int>(threadIdx.x)) {}

  // What follows from a thread's number is found again, and not kept since before a loop.
  PYOPS_HOST_DEVICE void forget() { thread = unknown(thread); }

  template <class F>
  PYOPS_HOST_DEVICE void alone(const F& f) {
#ifdef __CUDA_ARCH__
    f(thread, state);
#endif
  }

  // What the thread copied has come.
  PYOPS_HOST_DEVICE static void arrive() {
#ifdef __CUDA_ARCH__
    cute::cp_async_wait<0>();
#endif
  }
  // All have come this far, and so has what they copied.
  PYOPS_HOST_DEVICE void await() {
#ifdef __CUDA_ARCH__
    arrive();
    __syncthreads();
#endif
  }

  // Whether f is true of every thread of the warp.
  template <class F>
  PYOPS_HOST_DEVICE bool all_of_warp(const F& f) {
#ifdef __CUDA_ARCH__
    return __all_sync(0xffffffffu, f(thread, state));
#else
    return true;
#endif
  }

  // Begin to copy 16 bytes, or a number, to shared memory; zeros where there is nothing.
  template <class T>
  PYOPS_HOST_DEVICE static void copy_pack(T* to, const T* from, bool exists) {
#ifdef __CUDA_ARCH__
    cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>::copy(
        *reinterpret_cast<const cute::uint128_t*>(from), *reinterpret_cast<cute::uint128_t*>(to),
        exists);
#endif
  }
  PYOPS_HOST_DEVICE static void copy_number(float* to, const float* from, bool exists) {
#ifdef __CUDA_ARCH__
    cute::SM80_CP_ASYNC_CACHEALWAYS_ZFILL<float>::copy(*from, *to, exists);
#endif
  }

  // Four matrices of eight rows of 16 bytes, of each a word to a thread as ldmatrix says: row
  // thread % 8 of matrix thread % 32 / 8 lies where row_at(thread) says.
  template <bool kTransposed, class RowAt, class Words>
  PYOPS_HOST_DEVICE void load_matrices(const RowAt& row_at, const Words& words_of) {
#ifdef __CUDA_ARCH__
    const auto& row = *reinterpret_cast<const cute::uint128_t*>(row_at(thread));
    uint32_t* const to = words_of(state);
    if constexpr (kTransposed) {
      cute::SM75_U16x8_LDSM_T::copy(row, to[0], to[1], to[2], to[3]);
    } else {
      cute::SM75_U32x4_LDSM_N::copy(row, to[0], to[1], to[2], to[3]);
    }
#endif
  }
};

}  // namespace pyops
