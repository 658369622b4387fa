// Convolutions of half precision on the tensor cores of any GPU from sm_80 on, by CUTLASS's
// implicit product: bias and ReLU in the epilogue.
#include <cutlass/conv/kernel/default_conv2d_fprop.h>

#include "conv2d/conv2d_tensorop.cuh"

namespace pyops {
namespace {

using namespace tensorop;

template <class T, bool kRelu>
using Epilogue =
    std::conditional_t<kRelu, cutlass::epilogue::thread::LinearCombinationRelu<T, 8, float, float>,
                       cutlass::epilogue::thread::LinearCombination<T, 8, float, float>>;

template <class T, bool kRelu>
using Fprop = typename cutlass::conv::kernel::DefaultConv2dFprop<
    T, Nhwc, T, Nhwc, T, Nhwc, float, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, Tile,
    Warp, Instruction, Epilogue<T, kRelu>, Swizzle, kStages, cutlass::arch::OpMultiplyAdd,
    kAlgorithm>::Kernel;

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreadCount, 2)
    conv2d_forward_tensorop_kernel(const __grid_constant__ typename Kernel::Params params) {
  convolve<Kernel>(params);
}

template <class T, bool kRelu>
cudaError_t forward(const Conv2dParams& p, cudaStream_t stream) {
  using Kernel = Fprop<T, kRelu>;
  const typename Kernel::Arguments arguments(
      problem_of(p), tensor<T>(p.x, p.c, p.w, p.h), tensor<T>(p.weight, p.c, p.kw, p.kh),
      tensor<T>(p.bias, 0, 0, 0), tensor<T>(p.y, p.o, p.ow, p.oh),
      {1.0f, p.bias == nullptr ? 0.0f : 1.0f});
  return tensorop::launch<Kernel>(conv2d_forward_tensorop_kernel<Kernel>, arguments, stream);
}

}  // namespace

cudaError_t conv2d_forward_tensorop_cuda(const Conv2dParams& p, cudaStream_t stream) {
  return with_half_type(p.dtype, [&]<class T>(T) {
    return p.relu ? forward<T, true>(p, stream) : forward<T, false>(p, stream);
  });
}

}  // namespace pyops
