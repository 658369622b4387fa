// Runs an algorithm that is written for a team of threads, each with a state of its own, by a block
// of them.
#pragma once

#include "core/cuda.cuh"

namespace pyops {

template <class State>
struct BlockTeam {
  State state;

  PYOPS_HOST_DEVICE State& of(int) { return state; }  // a thread has its own alone

  template <class F>
  PYOPS_HOST_DEVICE void alone(const F& f) {
#ifdef __CUDA_ARCH__
    f(static_cast<int>(threadIdx.x), state);
#endif
  }

  // All are done before any goes on.
  template <class F>
  PYOPS_HOST_DEVICE void each(const F& f) {
#ifdef __CUDA_ARCH__
    f(static_cast<int>(threadIdx.x), state);
    __syncthreads();
#endif
  }
  // The same, and whether f was true of every thread.
  template <class F>
  PYOPS_HOST_DEVICE bool all(const F& f) {
#ifdef __CUDA_ARCH__
    return __syncthreads_and(f(static_cast<int>(threadIdx.x), state));
#else
    return true;
#endif
  }
};

}  // namespace pyops
