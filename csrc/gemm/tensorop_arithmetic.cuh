// What CUTLASS's kernels of sm_80 multiply, and by which tiles: four stages in 64 KiB. Two blocks
// of four warps share an SM, or one of eight, as their sums fill its registers.
#pragma once

#include <cuda_runtime_api.h>
#include <cutlass/arch/mma.h>
#include <cutlass/epilogue/thread/linear_combination.h>
#include <cutlass/epilogue/thread/linear_combination_relu.h>
#include <cutlass/gemm/gemm.h>
#include <cutlass/numeric_types.h>

#include "core/dtype.h"
#include "gemm/cutlass_type.h"
#include "gemm/split_float32.cuh"

namespace pyops {

// f(T{}) with CUTLASS's name of the element type.
template <class F>
cudaError_t with_half_type(Dtype dtype, F&& f) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype<kHalfTypes>(dtype, [&]<class T>(T) { status = f(cutlass_t<T>{}); });
  return status;
}

template <class T>
struct HalfProducts {
  using Element = T;
  using Operator = cutlass::arch::OpMultiplyAdd;
  using Tile = cutlass::gemm::GemmShape<128, 128, 32>;
  using Warp = cutlass::gemm::GemmShape<64, 64, 32>;
  using Instruction = cutlass::gemm::GemmShape<16, 8, 16>;
  static constexpr int kStages = 4, kAlignment = 8;
};

// Float32, rounded to TF32 on the way.
struct Tf32Products {
  using Element = float;
  using Operator = cutlass::arch::OpMultiplyAdd;
  using Tile = cutlass::gemm::GemmShape<128, 128, 16>;
  using Warp = cutlass::gemm::GemmShape<64, 64, 16>;
  using Instruction = cutlass::gemm::GemmShape<16, 8, 8>;
  static constexpr int kStages = 4, kAlignment = 4;
  static constexpr int64_t kDeepest = INT32_MAX;  // sum that is as exact as asked for
};

// Float32 to float32's accuracy; with larger warps the parts would spill.
struct Float32Products : Tf32Products {
  using Operator = MultiplySplitFloat32;
  using Warp = cutlass::gemm::GemmShape<64, 32, 16>;
  static constexpr int64_t kDeepest = kDeepestSplitSum;
};

// Stores 16 bytes at a time of type D.
template <class D>
using StoreSums = cutlass::epilogue::thread::LinearCombination<D, 16 / sizeof(D), float, float>;
// Raised to at least zero, or as they are: one kernel for both.
template <class D>
using StoreRelu = cutlass::epilogue::thread::LinearCombinationRelu<D, 16 / sizeof(D), float, float>;

}  // namespace pyops
