// CUTLASS's implicit products for channels that come last, in its words: activations x, filters
// weight. Bias and ReLU are in the epilogue of the forward; grad_weight is summed over slices of
// the positions in float32, and these in their order.
#pragma once

#include <cutlass/conv/conv2d_problem_size.h>
#include <cutlass/conv/convolution.h>
#include <cutlass/conv/kernel/default_conv2d_dgrad.h>
#include <cutlass/conv/kernel/default_conv2d_fprop.h>
#include <cutlass/conv/kernel/default_conv2d_wgrad.h>
#include <cutlass/gemm/threadblock/threadblock_swizzle.h>

#include <cmath>
#include <type_traits>

#include "conv2d/conv2d_images.h"
#include "conv2d/conv2d_problem.h"
#include "conv2d/conv2d_tensorop.h"
#include "core/cuda.cuh"
#include "gemm/backward_by_products.cuh"
#include "gemm/tensorop_arithmetic.cuh"

namespace pyops::tensorop {

using cutlass::conv::StrideSupport;
using Nhwc = cutlass::layout::TensorNHWC;
using Swizzle = cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<4>;
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

template <class A, class T = typename A::Element>
using Fprop = typename cutlass::conv::kernel::DefaultConv2dFprop<
    T, Nhwc, T, Nhwc, T, Nhwc, float, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80,
    typename A::Tile, typename A::Warp, typename A::Instruction, StoreRelu<T>, Swizzle, A::kStages,
    typename A::Operator, kAlgorithm>::Kernel;

template <class A, StrideSupport kStride, class T = typename A::Element>
using Dgrad = typename cutlass::conv::kernel::DefaultConv2dDgrad<
    T, Nhwc, T, Nhwc, T, Nhwc, float, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80,
    typename A::Tile, typename A::Warp, typename A::Instruction, StoreSums<T>,
    std::conditional_t<kStride == StrideSupport::kUnity, Swizzle,
                       cutlass::conv::threadblock::StridedDgradIdentityThreadblockSwizzle<1>>,
    A::kStages, typename A::Operator, kAlgorithm, kStride>::Kernel;

template <class A, class T = typename A::Element>
using Wgrad = typename cutlass::conv::kernel::DefaultConv2dWgrad<
    T, Nhwc, T, Nhwc, float, Nhwc, float, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80,
    typename A::Tile, typename A::Warp, typename A::Instruction, StoreSums<float>, Swizzle,
    A::kStages, typename A::Operator, kAlgorithm>::Kernel;

}  // namespace pyops::tensorop

namespace pyops {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreadCount, 256 / Kernel::kThreadCount)
    conv2d_forward_tensorop_kernel(const __grid_constant__ typename Kernel::Params params) {
  tensorop::convolve<Kernel>(params);
}
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreadCount, 256 / Kernel::kThreadCount)
    conv2d_backward_tensorop_kernel(const __grid_constant__ typename Kernel::Params params) {
  tensorop::convolve<Kernel>(params);
}

namespace tensorop {

template <class Arithmetic>
cudaError_t forward(const Conv2dParams& whole, cudaStream_t stream) {
  using Kernel = Fprop<Arithmetic>;
  using T = typename Arithmetic::Element;
  return for_images(whole, images_of_launch(whole, whole.dtype), [&](const Conv2dParams& p) {
    const typename Kernel::Arguments arguments(
        problem_of(p), tensor<T>(p.x, p.c, p.w, p.h), tensor<T>(p.weight, p.c, p.kw, p.kh),
        tensor<T>(p.bias, 0, 0, 0), tensor<T>(p.y, p.o, p.ow, p.oh),
        {1.0f, p.bias == nullptr ? 0.0f : 1.0f, p.relu ? 0.0f : -INFINITY});
    return launch<Kernel>(conv2d_forward_tensorop_kernel<Kernel>, arguments, stream);
  });
}

template <class Arithmetic, StrideSupport kStride>
cudaError_t backward_x(const Conv2dBackwardParams& whole, cudaStream_t stream) {
  using Kernel = Dgrad<Arithmetic, kStride>;
  using T = typename Arithmetic::Element;
  return for_images(whole, images_of_launch(whole, whole.dtype), [&](const auto& p) {
    const auto grad_x = tensor<T>(p.grad_x, p.c, p.w, p.h);
    const typename Kernel::Arguments arguments(problem_of(p), tensor<T>(p.grad_y, p.o, p.ow, p.oh),
                                               tensor<T>(p.weight, p.c, p.kw, p.kh), grad_x, grad_x,
                                               {1.0f, 0.0f});
    return launch<Kernel>(conv2d_backward_tensorop_kernel<Kernel>, arguments, stream);
  });
}

// Enough to give two blocks to every SM of the largest GPUs, and no more than the workspace holds.
template <class Tile>
int64_t weight_slices(const Conv2dShape& s) {
  constexpr int64_t kBlocks = 264;
  const int64_t tiles =
      ((s.o + Tile::kM - 1) / Tile::kM) * ((s.c * s.kh * s.kw + Tile::kN - 1) / Tile::kN);
  return std::min(weight_splits(s), std::max<int64_t>(1, kBlocks / tiles));
}

template <class Arithmetic>
cudaError_t backward_weight(const Conv2dBackwardParams& p, cudaStream_t stream) {
  using Kernel = Wgrad<Arithmetic>;
  using T = typename Arithmetic::Element;
  const auto multiply = [&](const Conv2dBackwardParams& part, float* sums, int64_t* slices) {
    *slices = weight_slices<typename Arithmetic::Tile>(part);
    const auto to = tensor<float>(sums, p.c, p.kw, p.kh);
    const typename Kernel::Arguments arguments(problem_of(part, *slices),
                                               tensor<T>(part.grad_y, p.o, p.ow, p.oh),
                                               tensor<T>(part.x, p.c, p.w, p.h), to, to,
                                               {1.0f, 0.0f}, cutlass::conv::SplitKMode::kParallel);
    return launch<Kernel>(conv2d_backward_tensorop_kernel<Kernel>, arguments, stream);
  };
  const auto add = [&](Dtype dtype, void* to, int64_t count) {
    return add_parts_cuda(dtype, to, p.workspace, count, p.weights(), stream);
  };
  return sum_images(p, images_of_launch(p, p.dtype), multiply, add);
}

// What a gradient with a stride is computed by: its addresses leave no room for TF32's warps.
template <class Arithmetic>
struct Strided : Arithmetic {};
template <>
struct Strided<Tf32Products> : Tf32Products {
  using Warp = Float32Products::Warp;
};

template <class Arithmetic>
cudaError_t backward(const Conv2dBackwardParams& given, cudaStream_t stream) {
  return backward_by_products(given, stream, [&](const Conv2dBackwardParams& p) {
    cudaError_t status = cudaSuccess;
    if (p.grad_x != nullptr) {
      const bool unit = p.stride_h == 1 && p.stride_w == 1;
      status = unit ? backward_x<Arithmetic, StrideSupport::kUnity>(p, stream)
                    : backward_x<Strided<Arithmetic>, StrideSupport::kStrided>(p, stream);
    }
    if (status != cudaSuccess || p.grad_weight == nullptr) return status;
    return backward_weight<Arithmetic>(p, stream);
  });
}

}  // namespace tensorop

}  // namespace pyops
