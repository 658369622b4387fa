// Kernels whose results are known, for what threads.cpp and cute.h emulate.
#include <cuda/atomic>

#include "core/cuda.cuh"
#include "cute.h"

namespace pyops {

thread_local char dynamic_storage[(163 << 10) + 1024];

namespace {

constexpr int kWide = 64;

template <bool kWaits>
void reverse_kernel(int* to, const int* from) {
  __shared__ int all[kWide];
  const unsigned t = threadIdx.x, first = blockIdx.x * kWide;
  all[t] = from[first + t];
  if (kWaits) __syncthreads();
  to[first + t] = all[kWide - 1 - t];
  __syncthreads();
}

void places_kernel(int* visits) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  visits[block * static_cast<unsigned>(blockDim.count()) + thread] += 1;
}

void warp_kernel(const int* from, int* sums, int* all_positive) {
  const unsigned t = threadIdx.x;
  int sum = from[t];
  for (int apart = 1; apart < 32; apart *= 2) sum += __shfl_xor_sync(~0u, sum, apart);
  sums[t] = sum;
  all_positive[t] = __all_sync(~0u, from[t] > 0);
}

// Every operand as PTX lays it out, and ldmatrix for b, whose rows are in shared memory.
void multiply_kernel(const BFloat16* a, const BFloat16* b, float* c) {
  __shared__ __align__(16) BFloat16 rows[16][8];
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, pair = lane % 4 * 2;
  for (int e = lane; e < 16 * 8; e += 32) rows[e / 8][e % 8] = b[e];
  __syncwarp();
  uint32_t of_a[4], of_b[2];
  for (int i = 0; i < 4; ++i) {
    const BFloat16* at = a + (group + i % 2 * 8) * 16 + pair + i / 2 * 8;
    of_a[i] = word_of(at[0], at[1]);
  }
  cute::SM75_U16x4_LDSM_T::copy(*reinterpret_cast<const cute::uint128_t*>(rows[lane % 16]), of_b[0],
                                of_b[1]);
  float d[4] = {};
  cute::SM80_16x8x16_F32BF16BF16F32_TN::fma(d[0], d[1], d[2], d[3], of_a[0], of_a[1], of_a[2],
                                            of_a[3], of_b[0], of_b[1], d[0], d[1], d[2], d[3]);
  for (int i = 0; i < 4; ++i) c[(group + i / 2 * 8) * 8 + pair + i % 2] = d[i];
}

// The same in TF32, whose operands lie in the order of load_matrices as pairs of 16 bits.
void multiply_tf32_kernel(const float* a, const float* b, float* c) {
  __shared__ __align__(16) float rows[16][8];
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, at = lane % 4;
  for (int e = lane; e < 16 * 8; e += 32) {
    cute::SM80_CP_ASYNC_CACHEALWAYS_ZFILL<float>::copy(a[e], rows[e / 8][e % 8], true);
  }
  cute::cp_async_wait<0>();
  __syncwarp();
  uint32_t of_a[4];
  cute::SM75_U32x4_LDSM_N::copy(
      *reinterpret_cast<const cute::uint128_t*>(&rows[lane % 16][lane / 16 * 4]), of_a[0], of_a[1],
      of_a[2], of_a[3]);
  const uint32_t of_b[2] = {float_bits(b[at * 8 + group]), float_bits(b[(at + 4) * 8 + group])};
  float d[4] = {};
  cute::SM80_16x8x8_F32TF32TF32F32_TN::fma(d[0], d[1], d[2], d[3], of_a[0], of_a[1], of_a[2],
                                           of_a[3], of_b[0], of_b[1], d[0], d[1], d[2], d[3]);
  for (int i = 0; i < 4; ++i) c[(group + i / 2 * 8) * 8 + at * 2 + i % 2] = d[i];
}

// Rounds in which one thread alone, another each time, or nobody objects.
void votes_kernel(int* agreed, int rounds) {
  for (int r = 0; r < rounds; ++r) {
    const int all = __syncthreads_and(r % 2 == 0 || threadIdx.x != static_cast<unsigned>(r));
    agreed[r * kWide + static_cast<int>(threadIdx.x)] = all;
  }
}

// Each block adds what the one before has left, in turn.
void turns_kernel(unsigned* turn, int* log) {
  const cuda::atomic_ref<unsigned, cuda::thread_scope_device> now(*turn);
  if (threadIdx.x == 0) {
    while (now.load(std::memory_order_acquire) != blockIdx.x) {
    }
    log[blockIdx.x] = blockIdx.x == 0 ? 1 : log[blockIdx.x - 1] + 1;
    now.fetch_add(1, std::memory_order_release);
  }
  __syncthreads();
}

// The first of the dynamic shared memory's bytes, or those behind its end.
void dynamic_kernel(int* seen, int at) {
  char* bytes = dynamic_shared<char>();
  if (threadIdx.x == 0) *seen = static_cast<unsigned char>(bytes[0]);
  __syncthreads();
  if (threadIdx.x == 0) bytes[at] = 1;
}

void leaving_kernel() {
  if (threadIdx.x > 0) __syncthreads();
}

cudaLaunchConfig_t shape(dim3 grid, dim3 block, size_t shared = 0) {
  cudaLaunchConfig_t config;
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  return config;
}

}  // namespace

extern "C" {

int run_reverse(int* to, const int* from, int blocks, bool waits) {
  const auto config = shape(static_cast<unsigned>(blocks), kWide);
  return waits ? cudaLaunchKernelEx(&config, reverse_kernel<true>, to, from)
               : cudaLaunchKernelEx(&config, reverse_kernel<false>, to, from);
}

int run_places(int* visits) {
  const auto config = shape({3, 2, 2}, {8, 4, 2});
  return cudaLaunchKernelEx(&config, places_kernel, visits);
}

int run_warp(const int* from, int* sums, int* all_positive) {
  const auto config = shape(1, kWide);
  return cudaLaunchKernelEx(&config, warp_kernel, from, sums, all_positive);
}

int run_multiply(const uint16_t* a, const uint16_t* b, float* c) {
  const auto config = shape(1, 32);
  return cudaLaunchKernelEx(&config, multiply_kernel, reinterpret_cast<const BFloat16*>(a),
                            reinterpret_cast<const BFloat16*>(b), c);
}

int run_multiply_tf32(const float* a, const float* b, float* c) {
  const auto config = shape(1, 32);
  return cudaLaunchKernelEx(&config, multiply_tf32_kernel, a, b, c);
}

int run_votes(int* agreed, int rounds) {
  const auto config = shape(1, kWide);
  return cudaLaunchKernelEx(&config, votes_kernel, agreed, rounds);
}

int run_turns(unsigned* turn, int* log, int blocks) {
  auto config = shape(static_cast<unsigned>(blocks), kWide);
  cudaLaunchAttribute cooperative{cudaLaunchAttributeCooperative, {1}};
  config.attrs = &cooperative;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, turns_kernel, turn, log);
}

int run_dynamic(int* seen, int bytes, int allowed, int at) {
  const cudaError_t status =
      cudaFuncSetAttribute(dynamic_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed);
  if (status != cudaSuccess) return status;
  const auto config = shape(1, 32, static_cast<size_t>(bytes));
  return cudaLaunchKernelEx(&config, dynamic_kernel, seen, at);
}

int run_leaving(int blocks, int threads) {
  const auto config = shape(static_cast<unsigned>(blocks), static_cast<unsigned>(threads));
  return cudaLaunchKernelEx(&config, leaving_kernel);
}

}  // extern "C"

}  // namespace pyops
