// Attention in half precision on the tensor cores of any GPU from sm_80 on, by CuTe's atoms.
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/mma_sm80.hpp>
#include <type_traits>

#include "attention/attention_team.cuh"
#include "attention/attention_tensorop_block.h"

namespace pyops {
namespace {

template <class State>
struct WarpTeam : BlockTeam<State> {
  using BlockTeam<State>::state;

  template <class F>
  PYOPS_HOST_DEVICE void alone(const F& f) {
#ifdef __CUDA_ARCH__
    f(static_cast<int>(threadIdx.x), state);
#endif
  }

  template <class F>
  PYOPS_HOST_DEVICE void reduce(const F& join) {
#ifdef __CUDA_ARCH__
    PYOPS_UNROLL for (int r = 0; r < 2; ++r) {
      float& x = state.rows[r];
      PYOPS_UNROLL for (int apart = 1; apart < 4; apart *= 2) {
        x = join(x, __shfl_xor_sync(0xffffffffu, x, apart));
      }
    }
#endif
  }

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

  template <class T>
  PYOPS_HOST_DEVICE static void load_transposed(const T* from, int stride, int lane,
                                                uint32_t (&to)[2]) {
#ifdef __CUDA_ARCH__
    cute::SM75_U16x4_LDSM_T::copy(
        *reinterpret_cast<const cute::uint128_t*>(from + lane % 16 * stride), to[0], to[1]);
#endif
  }
};

// Of blocks on an SM at once: as many as the sums of kD columns leave registers for.
constexpr int blocks_wanted(int d) { return d > 64 ? 2 : 3; }

template <class T, int kD>
__global__ void __launch_bounds__(AttentionTensorForward<T, kD>::kThreads, blocks_wanted(kD))
    attention_forward_tensorop_kernel(AttentionParams p) {
  using Algorithm = AttentionTensorForward<T, kD>;
  run_blocks<Algorithm, WarpTeam<typename Algorithm::State>>(p);
}

template <class T, int kD>
cudaError_t launch_forward(const AttentionParams& p, cudaStream_t stream) {
  using Algorithm = AttentionTensorForward<T, kD>;
  const int64_t blocks = Algorithm::blocks(p);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks < INT32_MAX ? blocks : INT32_MAX));
  config.blockDim = dim3(Algorithm::kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, attention_forward_tensorop_kernel<T, kD>, p);
}

}  // namespace

cudaError_t attention_forward_tensorop_cuda(const AttentionParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype<kHalfTypes>(p.dtype, [&]<class T>(T) {
    status = p.dim <= 64 && p.value_dim <= 64 ? launch_forward<T, 64>(p, stream)
                                              : launch_forward<T, 128>(p, stream);
  });
  return status;
}

}  // namespace pyops
