// Gradients of convolutions of half precision on the tensor cores of any GPU from sm_80 on, by
// CUTLASS's implicit products. The gradient is masked once, as all of them read it; grad_weight is
// summed over slices of the positions in float32, and these in their order.
#include <cutlass/conv/kernel/default_conv2d_dgrad.h>
#include <cutlass/conv/kernel/default_conv2d_wgrad.h>

#include "conv2d/conv2d_problem.h"
#include "conv2d/conv2d_tensorop.cuh"
#include "core/relu_mask.cuh"

namespace pyops {
namespace {

using namespace tensorop;
using cutlass::conv::StrideSupport;

template <class T>
using Plain = cutlass::epilogue::thread::LinearCombination<T, 128 / cutlass::sizeof_bits<T>::value,
                                                           float, float>;

template <class T, StrideSupport kStride>
using Dgrad = typename cutlass::conv::kernel::DefaultConv2dDgrad<
    T, Nhwc, T, Nhwc, T, Nhwc, float, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, Tile,
    Warp, Instruction, Plain<T>,
    std::conditional_t<kStride == StrideSupport::kUnity, Swizzle,
                       cutlass::conv::threadblock::StridedDgradIdentityThreadblockSwizzle<1>>,
    kStages, cutlass::arch::OpMultiplyAdd, kAlgorithm, kStride>::Kernel;

template <class T>
using Wgrad = typename cutlass::conv::kernel::DefaultConv2dWgrad<
    T, Nhwc, T, Nhwc, float, Nhwc, float, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, Tile,
    Warp, Instruction, Plain<float>, Swizzle, kStages, cutlass::arch::OpMultiplyAdd,
    kAlgorithm>::Kernel;

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreadCount, 2)
    conv2d_backward_tensorop_kernel(const __grid_constant__ typename Kernel::Params params) {
  convolve<Kernel>(params);
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    conv2d_backward_mask_kernel(const __grid_constant__ Conv2dBackwardParams p, int64_t packs) {
  mask_packs<T>(p.grad_y, p.y, p.workspace, packs);
}

cudaError_t mask(const Conv2dBackwardParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  const int64_t packs = p.n * p.o * p.oh * p.ow / pack_width(p.dtype);
  dispatch_dtype<kHalfTypes>(p.dtype, [&]<class T>(T) {
    status = pyops::launch(conv2d_backward_mask_kernel<T>, packs, stream, p, packs);
  });
  return status;
}

template <class T, StrideSupport kStride>
cudaError_t backward_x(const Conv2dBackwardParams& p, cudaStream_t stream) {
  using Kernel = Dgrad<T, kStride>;
  const auto grad_x = tensor<T>(p.grad_x, p.c, p.w, p.h);
  const typename Kernel::Arguments arguments(problem_of(p), tensor<T>(p.grad_y, p.o, p.ow, p.oh),
                                             tensor<T>(p.weight, p.c, p.kw, p.kh), grad_x, grad_x,
                                             {1.0f, 0.0f});
  return tensorop::launch<Kernel>(conv2d_backward_tensorop_kernel<Kernel>, arguments, stream);
}

// Enough to give two blocks to every SM of the largest GPUs, and no more than the workspace holds.
int64_t weight_slices(const Conv2dShape& s) {
  constexpr int64_t kBlocks = 264;
  const int64_t tiles =
      ((s.o + Tile::kM - 1) / Tile::kM) * ((s.c * s.kh * s.kw + Tile::kN - 1) / Tile::kN);
  return std::min(weight_splits(s), std::max<int64_t>(1, kBlocks / tiles));
}

template <class T>
cudaError_t backward_weight(const Conv2dBackwardParams& p, cudaStream_t stream) {
  using Kernel = Wgrad<T>;
  const int64_t slices = weight_slices(p);
  const auto parts = tensor<float>(p.workspace, p.c, p.kw, p.kh);
  const typename Kernel::Arguments arguments(
      problem_of(p, slices), tensor<T>(p.grad_y, p.o, p.ow, p.oh), tensor<T>(p.x, p.c, p.w, p.h),
      parts, parts, {1.0f, 0.0f}, cutlass::conv::SplitKMode::kParallel);
  const cudaError_t status =
      tensorop::launch<Kernel>(conv2d_backward_tensorop_kernel<Kernel>, arguments, stream);
  return status == cudaSuccess ? conv2d_backward_reduce_cuda(p, slices, stream) : status;
}

}  // namespace

cudaError_t conv2d_backward_tensorop_cuda(const Conv2dBackwardParams& given, cudaStream_t stream) {
  Conv2dBackwardParams p = given;
  p.workspace = static_cast<char*>(given.workspace) + masked_bytes(given);
  if (p.y != nullptr) {
    if (const cudaError_t status = mask(given, stream); status != cudaSuccess) return status;
    p.grad_y = given.workspace;
    p.y = nullptr;
  }
  const cudaError_t status = with_half_type(p.dtype, [&]<class T>(T) {
    cudaError_t status = cudaSuccess;
    if (p.grad_x != nullptr) {
      const bool unit = p.stride_h == 1 && p.stride_w == 1;
      status = unit ? backward_x<T, StrideSupport::kUnity>(p, stream)
                    : backward_x<T, StrideSupport::kStrided>(p, stream);
    }
    if (status != cudaSuccess || p.grad_weight == nullptr) return status;
    return backward_weight<T>(p, stream);
  });
  if (status != cudaSuccess || p.grad_bias == nullptr) return status;
  p.grad_x = p.grad_weight = nullptr;  // what is left is a sum over the positions
  return conv2d_backward_cuda(p, stream);
}

}  // namespace pyops
