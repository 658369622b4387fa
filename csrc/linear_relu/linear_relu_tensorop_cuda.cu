// Linear layers of half precision on the tensor cores of any GPU from sm_80 on, by CUTLASS's tiles
// of 128×128: bias and ReLU in the epilogue. The backward masks the gradient once, as two products
// read it, and sums in float32 in the order of the depth.
#include <cutlass/epilogue/thread/linear_combination.h>
#include <cutlass/epilogue/thread/linear_combination_relu.h>
#include <cutlass/gemm/device/gemm.h>

#include "core/cuda.cuh"
#include "linear_relu/linear_relu.h"

namespace pyops {
namespace {

using cutlass::layout::ColumnMajor;
using cutlass::layout::RowMajor;

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

template <class T, bool kRelu>
using Epilogue =
    std::conditional_t<kRelu, cutlass::epilogue::thread::LinearCombinationRelu<T, 8, float, float>,
                       cutlass::epilogue::thread::LinearCombination<T, 8, float, float>>;

// D (rows, columns) = A · B + C; four stages of 32 are 64 KiB, so that two blocks share an SM.
template <class T, class LayoutA, class LayoutB, bool kRelu>
using Gemm = cutlass::gemm::device::Gemm<
    T, LayoutA, T, LayoutB, T, RowMajor, float, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80,
    cutlass::gemm::GemmShape<128, 128, 32>, cutlass::gemm::GemmShape<64, 64, 32>,
    cutlass::gemm::GemmShape<16, 8, 16>, Epilogue<T, kRelu>,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>, 4>;

template <class Gemm>
__device__ void multiply(const typename Gemm::GemmKernel::Params& params) {
  extern __shared__ __align__(16) char storage[];
  typename Gemm::GemmKernel kernel;
  kernel(params, *reinterpret_cast<typename Gemm::GemmKernel::SharedStorage*>(storage));
}

template <class Gemm>
__global__ void __launch_bounds__(Gemm::GemmKernel::kThreadCount, 2)
    linear_forward_tensorop_kernel(const __grid_constant__ typename Gemm::GemmKernel::Params p) {
  multiply<Gemm>(p);
}
template <class Gemm>
__global__ void __launch_bounds__(Gemm::GemmKernel::kThreadCount, 2)
    linear_backward_tensorop_kernel(const __grid_constant__ typename Gemm::GemmKernel::Params p) {
  multiply<Gemm>(p);
}

// Matrices as CUTLASS wants them: where they begin, and how far their lines are apart. Every row of
// C is the bias; without one C is not read.
struct Operands {
  int64_t rows, columns, depth;
  const void *a, *b, *bias;
  void* d;
  int64_t a_line, b_line;
};

template <class Gemm>
cudaError_t launch_gemm(void (*kernel)(typename Gemm::GemmKernel::Params), const Operands& o,
                        cudaStream_t stream) {
  using T = typename Gemm::ElementA;
  const cutlass::gemm::GemmCoord size(static_cast<int>(o.rows), static_cast<int>(o.columns),
                                      static_cast<int>(o.depth));
  const typename Gemm::ThreadblockSwizzle swizzle;
  using Tile = typename Gemm::ThreadblockShape;
  const auto tiles = swizzle.get_tiled_shape(size, {Tile::kM, Tile::kN, Tile::kK}, 1);
  const auto pointer = [](const void* p) { return static_cast<T*>(const_cast<void*>(p)); };
  const typename Gemm::GemmKernel::Params params(
      size, tiles, {pointer(o.a), o.a_line}, {pointer(o.b), o.b_line}, {pointer(o.bias), 0},
      {pointer(o.d), o.columns}, {1.0f, o.bias == nullptr ? 0.0f : 1.0f});
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

template <class T, bool kRelu>
cudaError_t forward(const LinearParams& p, cudaStream_t stream) {
  using Product = Gemm<T, RowMajor, ColumnMajor, kRelu>;
  const Operands o{p.m, p.n, p.k, p.x, p.w, p.bias, p.y, p.k, p.k};
  return launch_gemm<Product>(linear_forward_tensorop_kernel<Product>, o, stream);
}

// f(T{}) with CUTLASS's name of the element type.
template <class F>
cudaError_t with_half_type(Dtype dtype, F&& f) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype<kHalfTypes>(dtype,
                             [&]<class T>(T) { status = f(typename CutlassType<T>::type{}); });
  return status;
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    linear_backward_mask_kernel(LinearBackwardParams p, int64_t packs) {
  for (int64_t i = thread_of_grid(); i < packs; i += stride_of_grid()) {
    const int64_t at = i * Pack<T>::kWidth;
    Pack<T> grad = load_pack(static_cast<const T*>(p.grad_y) + at);
    const Pack<T> y = load_pack(static_cast<const T*>(p.y) + at);
    PYOPS_UNROLL for (int v = 0; v < Pack<T>::kWidth; ++v) {
      if (static_cast<float>(y.at[v]) <= 0) grad.at[v] = static_cast<T>(0.0f);
    }
    store_pack(static_cast<T*>(p.masked) + at, grad);
  }
}

cudaError_t mask(const LinearBackwardParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  const int64_t packs = p.m * p.n / pack_width(p.dtype);
  dispatch_dtype<kHalfTypes>(p.dtype, [&]<class T>(T) {
    status = launch(linear_backward_mask_kernel<T>, packs, stream, p, packs);
  });
  return status;
}

}  // namespace

cudaError_t linear_forward_tensorop_cuda(const LinearParams& p, cudaStream_t stream) {
  return with_half_type(p.dtype, [&]<class T>(T) {
    return p.relu ? forward<T, true>(p, stream) : forward<T, false>(p, stream);
  });
}

cudaError_t linear_backward_tensorop_cuda(const LinearBackwardParams& given, cudaStream_t stream) {
  LinearBackwardParams p = given;
  if (p.y != nullptr) {
    if (const cudaError_t status = mask(p, stream); status != cudaSuccess) return status;
    p.grad_y = p.masked;
    p.y = nullptr;
  }
  const cudaError_t status = with_half_type(p.dtype, [&]<class T>(T) {
    using X = Gemm<T, RowMajor, RowMajor, false>;
    using W = Gemm<T, ColumnMajor, RowMajor, false>;
    cudaError_t status = cudaSuccess;
    if (p.grad_x != nullptr) {
      const Operands o{p.m, p.k, p.n, p.grad_y, p.w, nullptr, p.grad_x, p.n, p.k};
      status = launch_gemm<X>(linear_backward_tensorop_kernel<X>, o, stream);
    }
    if (status == cudaSuccess && p.grad_w != nullptr) {
      const Operands o{p.n, p.k, p.m, p.grad_y, p.x, nullptr, p.grad_w, p.n, p.k};
      status = launch_gemm<W>(linear_backward_tensorop_kernel<W>, o, stream);
    }
    return status;
  });
  if (status != cudaSuccess || p.grad_bias == nullptr) return status;
  p.grad_x = p.grad_w = nullptr;  // what is left is a sum of columns
  return linear_backward_cuda(p, stream);
}

}  // namespace pyops
