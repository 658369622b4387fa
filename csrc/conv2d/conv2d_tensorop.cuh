// CUTLASS's implicit products for channels that come last, in its words: activations x, filters
// weight, tiles of 128x128, four stages of 32 in 64 KiB, so that two blocks share an SM.
#pragma once

#include <cutlass/conv/conv2d_problem_size.h>
#include <cutlass/conv/convolution.h>
#include <cutlass/epilogue/thread/linear_combination.h>
#include <cutlass/epilogue/thread/linear_combination_relu.h>
#include <cutlass/gemm/threadblock/threadblock_swizzle.h>

#include "conv2d/conv2d_tensorop.h"
#include "core/cuda.cuh"

namespace pyops::tensorop {

template <class T>
struct CutlassType;
template <>
struct CutlassType<BFloat16> {
  using type = cutlass::bfloat16_t;
};
template <>
struct CutlassType<Float16> {
  using type = cutlass::half_t;
};

// f(T{}) with CUTLASS's name of the element type.
template <class F>
cudaError_t with_half_type(Dtype dtype, F&& f) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype<kHalfTypes>(dtype,
                             [&]<class T>(T) { status = f(typename CutlassType<T>::type{}); });
  return status;
}

using Nhwc = cutlass::layout::TensorNHWC;
using Tile = cutlass::gemm::GemmShape<128, 128, 32>;
using Warp = cutlass::gemm::GemmShape<64, 64, 32>;
using Instruction = cutlass::gemm::GemmShape<16, 8, 16>;
using Swizzle = cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<4>;
inline constexpr int kStages = 4;
inline constexpr auto kAlgorithm = cutlass::conv::IteratorAlgorithm::kOptimized;

inline cutlass::conv::Conv2dProblemSize problem_of(const Conv2dShape& s, int64_t slices = 1) {
  const auto number = [](int64_t value) { return static_cast<int>(value); };
  return {number(s.n),          number(s.h),
          number(s.w),          number(s.c),
          number(s.o),          number(s.kh),
          number(s.kw),         number(s.oh),
          number(s.ow),         number(s.padding_h),
          number(s.padding_w),  number(s.stride_h),
          number(s.stride_w),   number(s.dilation_h),
          number(s.dilation_w), cutlass::conv::Mode::kCrossCorrelation,
          number(slices)};
}

// A dense tensor; with sizes of zero every position has the same line of channels, as of a bias.
template <class T>
cutlass::TensorRef<T, Nhwc> tensor(const void* data, int64_t channels, int64_t cols, int64_t rows) {
  const auto stride = [](int64_t value) { return static_cast<int>(value); };
  return {static_cast<T*>(const_cast<void*>(data)),
          Nhwc({stride(channels), stride(channels * cols), stride(channels * cols * rows)})};
}

template <class Kernel>
__device__ void convolve(const typename Kernel::Params& params) {
  extern __shared__ __align__(16) char storage[];
  Kernel kernel;
  kernel(params, *reinterpret_cast<typename Kernel::SharedStorage*>(storage));
}

template <class Kernel>
cudaError_t launch(void (*kernel)(typename Kernel::Params),
                   const typename Kernel::Arguments& arguments, cudaStream_t stream) {
  const typename Kernel::Params params(arguments);
  constexpr int kShared = sizeof(typename Kernel::SharedStorage);
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  if (status != cudaSuccess) return status;
  cudaLaunchConfig_t config{};
  config.gridDim = typename Kernel::ThreadblockSwizzle().get_grid_shape(params.grid_tiled_shape);
  config.blockDim = dim3(Kernel::kThreadCount);
  config.dynamicSmemBytes = kShared;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace pyops::tensorop
