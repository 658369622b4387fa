// Products on the tensor cores of any GPU from sm_80 on, by CUTLASS's tiles of 128×128. Sums are
// float32, in the order of the depth.
#pragma once

#include <cutlass/gemm/device/gemm.h>

#include <cmath>
#include <type_traits>

#include "core/cuda.cuh"
#include "gemm/tensorop_arithmetic.cuh"
#include "gemm/tensorop_operands.h"

namespace pyops {

// D (rows, columns) = A · B + C, where C and D are of the type that the epilogue stores.
template <class Arithmetic, class LayoutA, class LayoutB, class Epilogue>
using TensoropProduct = cutlass::gemm::device::Gemm<
    typename Arithmetic::Element, LayoutA, typename Arithmetic::Element, LayoutB,
    typename Epilogue::ElementOutput, cutlass::layout::RowMajor, float,
    cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, typename Arithmetic::Tile,
    typename Arithmetic::Warp, typename Arithmetic::Instruction, Epilogue,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>, Arithmetic::kStages,
    Arithmetic::kAlignment, Arithmetic::kAlignment, /*SplitKSerial=*/false,
    typename Arithmetic::Operator>;

template <class T, class LayoutA, class LayoutB, class Epilogue = StoreSums<T>>
using TensoropGemm = TensoropProduct<HalfProducts<T>, LayoutA, LayoutB, Epilogue>;

// Of a kernel for `Gemm`: as many blocks on an SM as its sums leave registers for.
template <class Gemm>
inline constexpr int kBlocksOfTensorop = 256 / Gemm::GemmKernel::kThreadCount;

template <class Gemm>
__device__ void multiply_tensorop(const typename Gemm::GemmKernel::Params& params) {
  extern __shared__ __align__(16) char storage[];
  typename Gemm::GemmKernel kernel;
  kernel(params, *reinterpret_cast<typename Gemm::GemmKernel::SharedStorage*>(storage));
}

template <class Gemm>
cudaError_t launch_tensorop(void (*kernel)(typename Gemm::GemmKernel::Params),
                            const TensoropOperands& o, cudaStream_t stream) {
  using Operand = typename Gemm::ElementA;
  using Result = typename Gemm::ElementC;
  const cutlass::gemm::GemmCoord size(static_cast<int>(o.rows), static_cast<int>(o.columns),
                                      static_cast<int>(o.depth));
  const typename Gemm::ThreadblockSwizzle swizzle;
  using Tile = typename Gemm::ThreadblockShape;
  const auto tiles = swizzle.get_tiled_shape(size, {Tile::kM, Tile::kN, Tile::kK}, 1);
  const auto operand = [](const void* p) { return static_cast<Operand*>(const_cast<void*>(p)); };
  const auto result = [](const void* p) { return static_cast<Result*>(const_cast<void*>(p)); };
  typename Gemm::EpilogueOutputOp::Params store(1.0f, o.bias == nullptr ? 0.0f : 1.0f);
  if constexpr (requires { store.threshold; }) store.threshold = o.relu ? 0.0f : -INFINITY;
  const typename Gemm::GemmKernel::Params params(
      size, tiles, {operand(o.a), o.a_line}, {operand(o.b), o.b_line},
      {result(o.bias), o.bias_line}, {result(o.d), o.d_line}, store);
  constexpr int kShared = sizeof(typename Gemm::GemmKernel::SharedStorage);
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  if (status != cudaSuccess) return status;
  cudaLaunchConfig_t config{};
  config.gridDim = swizzle.get_grid_shape(tiles);
  config.blockDim = dim3(Gemm::GemmKernel::kThreadCount);
  config.dynamicSmemBytes = kShared;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, params);
}

// The same in parts of the depth, each added to those before it: a sum of sums is off by less than
// one long sum.
template <class Gemm>
cudaError_t launch_tensorop_in_parts(void (*kernel)(typename Gemm::GemmKernel::Params),
                                     const TensoropOperands& o, int64_t deepest,
                                     cudaStream_t stream) {
  using Element = typename Gemm::ElementA;
  constexpr bool kLinesOfDepthA =
      std::is_same_v<typename Gemm::LayoutA, cutlass::layout::ColumnMajor>;
  constexpr bool kLinesOfDepthB = std::is_same_v<typename Gemm::LayoutB, cutlass::layout::RowMajor>;
  cudaError_t status = cudaSuccess;
  for (int64_t q = 0; q < o.depth && status == cudaSuccess; q += deepest) {
    TensoropOperands part = o;
    part.depth = o.depth - q < deepest ? o.depth - q : deepest;
    part.a = static_cast<const Element*>(o.a) + (kLinesOfDepthA ? q * o.a_line : q);
    part.b = static_cast<const Element*>(o.b) + (kLinesOfDepthB ? q * o.b_line : q);
    part.relu = o.relu && q + deepest >= o.depth;
    if (q > 0) {
      part.bias = o.d;
      part.bias_line = o.d_line;
    }
    status = launch_tensorop<Gemm>(kernel, part, stream);
  }
  return status;
}

}  // namespace pyops
