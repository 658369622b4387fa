// Tiles of 128×256 by WGMMA from four stages of shared memory, one of a cluster's two operands
// loaded once for both of its blocks. Deep sums are stream-K's (Osama et al., 2023): every SM has
// the same number of steps of the depth, whatever the number of tiles.
#include "gemm/collective_sm90.cuh"
#include "gemm/gemm_sm90.h"

namespace pyops {
namespace {

using namespace sm90;
using GemmTile = Tile<128, 256, 64>;
using Cluster = Shape<Int<2>, Int<1>, Int<1>>;

template <class T, class LayoutA, class LayoutB, Finish kFinish, class Scheduler>
struct Collective {
  using Epilogue = sm90::Epilogue<T, GemmTile, Cluster, kFinish>;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, T, LayoutA, 8, T, LayoutB, 8, float,
      GemmTile, Cluster, Stages<Epilogue>,
      cutlass::gemm::KernelTmaWarpSpecializedCooperative>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue,
                                                      Scheduler>;
};

template <class T>
using Nt = typename Collective<T, RowMajor, ColumnMajor, Finish::kBiasAndBound,
                               cutlass::gemm::PersistentScheduler>::Kernel;
template <class T>
using Nn = typename Collective<T, RowMajor, RowMajor, Finish::kPlain,
                               cutlass::gemm::PersistentScheduler>::Kernel;
template <class T>
using Tn = typename Collective<T, ColumnMajor, RowMajor, Finish::kPlain,
                               cutlass::gemm::StreamKScheduler>::Kernel;

template <class Kernel>
__global__ void __launch_bounds__(Kernel::MaxThreadsPerBlock, 1)
    gemm_forward_sm90_kernel(const __grid_constant__ typename Kernel::Params params) {
  run<Kernel>(params);
}
template <class Kernel>
__global__ void __launch_bounds__(Kernel::MaxThreadsPerBlock, 1)
    gemm_backward_sm90_kernel(const __grid_constant__ typename Kernel::Params params) {
  run<Kernel>(params);
}

// Of an operand that is contiguous along the result's axis, or along the depth.
template <class Stride>
Stride strides_of(int64_t extent, int64_t depth) {
  if constexpr (cute::is_static_v<decltype(cute::get<0>(Stride{}))>) {
    return {Int<1>{}, extent, int64_t{0}};
  } else {
    return {depth, Int<1>{}, int64_t{0}};
  }
}

template <class Kernel>
typename Kernel::Arguments arguments_of(const GemmSm90Params& p) {
  using T = typename Kernel::ElementA;
  typename Kernel::Arguments arguments{};
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  arguments.problem_shape = cute::make_shape(static_cast<int>(p.rows), static_cast<int>(p.columns),
                                             static_cast<int>(p.depth), 1);
  arguments.mainloop.ptr_A = static_cast<const T*>(p.a);
  arguments.mainloop.dA = strides_of<typename Kernel::StrideA>(p.rows, p.depth);
  arguments.mainloop.ptr_B = static_cast<const T*>(p.b);
  arguments.mainloop.dB = strides_of<typename Kernel::StrideB>(p.columns, p.depth);
  arguments.epilogue.ptr_D = static_cast<T*>(p.d);
  arguments.epilogue.dD = {p.columns, Int<1>{}, int64_t{0}};
  arguments.epilogue.thread.alpha = 1.0f;
  return arguments;
}

}  // namespace

cudaError_t gemm_nt_sm90(const GemmSm90Params& p, cudaStream_t stream) {
  return with_half_type(p.dtype, [&]<class T>(T) {
    using Kernel = Nt<T>;
    auto arguments = arguments_of<Kernel>(p);
    set_finish(arguments.epilogue.thread, p.bias, p.relu);
    return launch<Kernel>(gemm_forward_sm90_kernel<Kernel>, arguments, nullptr, stream);
  });
}

cudaError_t gemm_nn_sm90(const GemmSm90Params& p, cudaStream_t stream) {
  return with_half_type(p.dtype, [&]<class T>(T) {
    using Kernel = Nn<T>;
    return launch<Kernel>(gemm_backward_sm90_kernel<Kernel>, arguments_of<Kernel>(p), nullptr,
                          stream);
  });
}

cudaError_t gemm_tn_sm90(const GemmSm90Params& p, void* workspace, cudaStream_t stream) {
  return with_half_type(p.dtype, [&]<class T>(T) {
    using Kernel = Tn<T>;
    return launch<Kernel>(gemm_backward_sm90_kernel<Kernel>, arguments_of<Kernel>(p), workspace,
                          stream);
  });
}

int64_t gemm_tn_workspace_sm90(const GemmSm90Params& p) {
  return with_half_type(p.dtype,
                        [&]<class T>(T) { return workspace_bytes<Tn<T>>(arguments_of<Tn<T>>(p)); });
}

}  // namespace pyops
