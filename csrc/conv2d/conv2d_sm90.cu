// Convolutions of half precision on Hopper: TMA gathers the pixels that a tap meets, which WGMMA
// multiplies by tiles of 256×128, as layers have many pixels and few channels; bias and ReLU in the
// epilogue. grad_weight, whose sums are deep and tiles few, is stream-K's. Kernels of one pixel are
// products of matrices; grad_x with a stride is sm_80's.
#include "conv2d/conv2d_sm90.cuh"
#include "gemm/backward_by_products.cuh"
#include "gemm/gemm_sm90.h"

namespace pyops {
namespace {

using namespace sm90;

template <class T>
using Fprop = typename ConvCollective<Operator::kFprop, T>::Kernel;
template <class T>
using Dgrad = typename ConvCollective<Operator::kDgrad, T>::Kernel;
template <class T>
using Wgrad = typename ConvCollective<Operator::kWgrad, T>::Kernel;

template <class Kernel>
__global__ void __launch_bounds__(Kernel::MaxThreadsPerBlock, 1)
    conv2d_forward_sm90_kernel(const __grid_constant__ typename Kernel::Params params) {
  run<Kernel>(params);
}
template <class Kernel>
__global__ void __launch_bounds__(Kernel::MaxThreadsPerBlock, 1)
    conv2d_backward_sm90_kernel(const __grid_constant__ typename Kernel::Params params) {
  run<Kernel>(params);
}

// `depth` in elements of a tap times taps, `batch` results that lie `apart` one after the other.
struct Sizes {
  int64_t rows, columns, depth, batch = 1, line = columns, apart = 0;
};

int64_t steps_of(const Conv2dShape& s, int64_t channels) {
  return (channels + 63) / 64 * 64 * s.kh * s.kw;
}

template <class Kernel, Operator kOp>
typename Kernel::Arguments arguments_of(const Conv2dShape& s, const Sizes& sizes, const void* a,
                                        const void* b, void* d) {
  using T = typename Kernel::ElementA;
  const auto number = [](int64_t value) { return static_cast<int>(value); };
  typename Kernel::Arguments arguments{};
  arguments.mode = sizes.batch == 1 ? cutlass::gemm::GemmUniversalMode::kGemm
                                    : cutlass::gemm::GemmUniversalMode::kBatched;
  arguments.problem_shape = cute::make_shape(number(sizes.rows), number(sizes.columns),
                                             number(sizes.depth), number(sizes.batch));
  arguments.mainloop.ptr_A = static_cast<const T*>(a);
  arguments.mainloop.ptr_B = static_cast<const T*>(b);
  arguments.mainloop.problem = problem_of<kOp>(s);
  arguments.epilogue.ptr_D = static_cast<T*>(d);
  arguments.epilogue.dD = {sizes.line, Int<1>{}, sizes.apart};
  arguments.epilogue.thread.alpha = 1.0f;
  return arguments;
}

template <class T>
typename Wgrad<T>::Arguments weight_arguments(const Conv2dBackwardParams& p) {
  const int64_t taps = p.kh * p.kw;
  const Sizes sizes{p.o, p.c, p.n * p.oh * p.ow, taps, taps * p.c, p.c};
  return arguments_of<Wgrad<T>, Operator::kWgrad>(p, sizes, p.grad_y, p.x, p.grad_weight);
}

GemmSm90Params weight_product(const Conv2dBackwardParams& p) {
  return {p.dtype, p.o, p.c, p.n * p.h * p.w, p.grad_y, p.x, p.grad_weight};
}

template <class T>
cudaError_t backward_x(const Conv2dBackwardParams& p, cudaStream_t stream) {
  if (is_product(p)) {
    return gemm_nn_sm90({p.dtype, p.n * p.h * p.w, p.c, p.o, p.grad_y, p.weight, p.grad_x}, stream);
  }
  if (p.stride_h != 1 || p.stride_w != 1) {
    Conv2dBackwardParams x_alone = p;
    x_alone.grad_weight = x_alone.grad_bias = nullptr;
    return conv2d_backward_tensorop_cuda(x_alone, stream);
  }
  using Kernel = Dgrad<T>;
  const Sizes sizes{p.n * p.h * p.w, p.c, steps_of(p, p.o)};
  const auto arguments =
      arguments_of<Kernel, Operator::kDgrad>(p, sizes, p.grad_y, p.weight, p.grad_x);
  return launch<Kernel>(conv2d_backward_sm90_kernel<Kernel>, arguments, nullptr, stream);
}

template <class T>
cudaError_t backward_weight(const Conv2dBackwardParams& p, cudaStream_t stream) {
  if (is_product(p)) return gemm_tn_sm90(weight_product(p), p.workspace, stream);
  return launch<Wgrad<T>>(conv2d_backward_sm90_kernel<Wgrad<T>>, weight_arguments<T>(p),
                          p.workspace, stream);
}

}  // namespace

cudaError_t conv2d_forward_sm90(const Conv2dParams& p, cudaStream_t stream) {
  if (is_product(p)) {
    return gemm_nt_sm90({p.dtype, p.n * p.h * p.w, p.o, p.c, p.x, p.weight, p.y, p.bias, p.relu},
                        stream);
  }
  return with_half_type(p.dtype, [&]<class T>(T) {
    using Kernel = Fprop<T>;
    const Sizes sizes{p.n * p.oh * p.ow, p.o, steps_of(p, p.c)};
    auto arguments = arguments_of<Kernel, Operator::kFprop>(p, sizes, p.x, p.weight, p.y);
    set_finish(arguments.epilogue.thread, p.bias, p.relu);
    return launch<Kernel>(conv2d_forward_sm90_kernel<Kernel>, arguments, nullptr, stream);
  });
}

cudaError_t conv2d_backward_sm90(const Conv2dBackwardParams& given, cudaStream_t stream) {
  return backward_by_products(given, stream, [&](const Conv2dBackwardParams& p) {
    return with_half_type(p.dtype, [&]<class T>(T) {
      cudaError_t status = cudaSuccess;
      if (p.grad_x != nullptr) status = backward_x<T>(p, stream);
      if (status != cudaSuccess || p.grad_weight == nullptr) return status;
      return backward_weight<T>(p, stream);
    });
  });
}

int64_t conv2d_backward_workspace_sm90(const Conv2dBackwardParams& p) {
  if (p.grad_weight == nullptr) return backward_workspace(p, 0);
  if (is_product(p)) return backward_workspace(p, gemm_tn_workspace_sm90(weight_product(p)));
  return backward_workspace(p, with_half_type(p.dtype, [&]<class T>(T) {
                              return workspace_bytes<Wgrad<T>>(weight_arguments<T>(p));
                            }));
}

}  // namespace pyops
