// Marks functions that CPU and CUDA code share. On the CPU they are always inlined: the linker
// keeps one copy of an inline function for all, and one compiled for a newer CPU must not be it.
#pragma once

#ifdef __CUDACC__
#define PYOPS_HOST_DEVICE __host__ __device__
#else
#define PYOPS_HOST_DEVICE __attribute__((always_inline))
#endif

// Marks what a GPU alone runs, in registers throughout; compiled without nvcc it runs in tests.
#ifdef __CUDACC__
#define PYOPS_DEVICE __device__ __forceinline__
#else
#define PYOPS_DEVICE inline
#endif

// The same number, but a compiler of GPU code does not know it: what follows from it is found again
// in every round of a loop, not kept in registers meanwhile.
PYOPS_HOST_DEVICE inline int unknown(int x) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(x));
#endif
  return x;
}

#ifdef __CUDA_ARCH__
#define PYOPS_UNROLL _Pragma("unroll")
#define PYOPS_ROLL _Pragma("unroll 1")
#else
#define PYOPS_UNROLL  // a CPU runs these for the sake of tests
#define PYOPS_ROLL
#endif
