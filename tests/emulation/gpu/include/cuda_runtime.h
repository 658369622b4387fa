// What kernels and their launchers take from CUDA, for g++: the runtime of an emulated GPU
// (threads.cpp). Also under the names of the other headers of CUDA, CuTe and CUTLASS that general
// kernels include.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// A block's threads run on one of the machine's, and so do those of blocks one after the other.
#define __shared__ thread_local

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorCooperativeLaunchTooLarge = 720,
};
using cudaStream_t = struct CUstream_st*;

struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;

  constexpr dim3(unsigned of_x = 1, unsigned of_y = 1, unsigned of_z = 1)
      : x(of_x), y(of_y), z(of_z) {}
  constexpr int64_t count() const { return int64_t{x} * y * z; }
};

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaLaunchAttributeID {
  cudaLaunchAttributeCooperative = 2,
  cudaLaunchAttributeClusterDimension = 4,
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  union {
    int cooperative;
    uint3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

extern thread_local uint3 threadIdx, blockIdx;
extern thread_local dim3 blockDim, gridDim;

namespace pyops {
extern thread_local char dynamic_storage[];  // what kernels know as dynamic shared memory
}

namespace emulated {

// Ends the program: a GPU would go wrong in silence.
[[noreturn]] void fail(const char* what);

// One thread of a kernel, and the dynamic shared memory of the thread of the machine that asks.
struct Kernel {
  const void* function;
  size_t parameter_bytes;
  void (*run)(const void* call);
  const void* call;
  char* (*shared)();
};
cudaError_t launch(const cudaLaunchConfig_t& config, const Kernel& kernel);
cudaError_t allow_shared(const void* function, int bytes);

// What each lane of the calling one's warp has brought, 32 bytes at most.
struct Slot {
  alignas(16) unsigned char bytes[32];

  template <class T>
  T as() const {
    T value;
    static_assert(sizeof value <= sizeof bytes);
    std::memcpy(&value, bytes, sizeof value);
    return value;
  }
};
const Slot* exchange(unsigned mask, const void* mine, size_t bytes);
int lane();

}  // namespace emulated

void __syncthreads();
int __syncthreads_and(int mine);

template <class T>
T __shfl_sync(unsigned mask, T x, int from) {
  return emulated::exchange(mask, &x, sizeof x)[from & 31].template as<T>();
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int bits) {
  return __shfl_sync(mask, x, emulated::lane() ^ bits);
}
inline int __all_sync(unsigned mask, int mine) {
  const emulated::Slot* slots = emulated::exchange(mask, &mine, sizeof mine);
  int all = 1;
  for (int lane = 0; lane < 32; ++lane) all &= slots[lane].as<int>() != 0;
  return all;
}
inline void __syncwarp(unsigned mask = ~0u) { emulated::exchange(mask, nullptr, 0); }

template <class T>
T __ldg(const T* from) {
  if (reinterpret_cast<uintptr_t>(from) % alignof(T) != 0) emulated::fail("a misaligned load");
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return __ldg(from);
}
// What the compiler for the CPU is told not to fuse in any case.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fsub_rn(float a, float b) { return a - b; }

template <class... Formal, class... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Formal...),
                               Actual&&... arguments) {
  const auto call = [&] { kernel(Formal(arguments)...); };
  using Call = decltype(call);
  return emulated::launch(
      *config, {reinterpret_cast<const void*>(kernel), (sizeof(Formal) + ... + size_t{0}),
                [](const void* c) { (*static_cast<const Call*>(c))(); }, &call,
                [] { return pyops::dynamic_storage; }});
}
template <class Function>
cudaError_t cudaFuncSetAttribute(Function* kernel, cudaFuncAttribute, int bytes) {
  return emulated::allow_shared(reinterpret_cast<const void*>(kernel), bytes);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int gpu);
cudaError_t cudaSetDevice(int gpu);
cudaError_t cudaGetLastError();
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);
const char* cudaGetErrorName(cudaError_t status);
const char* cudaGetErrorString(cudaError_t status);
