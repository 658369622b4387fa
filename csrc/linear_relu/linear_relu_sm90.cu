// The forward of linear layers of half precision on Hopper: CUTLASS's warp-specialised collective.
// TMA feeds tiles of 128×256 to WGMMA, two warpgroups to a tile, one tile loaded for two blocks of
// a cluster; bias and ReLU in the epilogue, before the only store.
#include <cute/tensor.hpp>
#include <cutlass/cluster_launch.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "core/dtype.h"
#include "linear_relu/linear_relu.h"

namespace pyops {
namespace {

using cute::Int;
using cute::Shape;
using cutlass::layout::ColumnMajor;
using cutlass::layout::RowMajor;

template <class T, bool kRelu>
struct Collective {
  using Tile = Shape<Int<128>, Int<256>, Int<64>>;
  using Cluster = Shape<Int<2>, Int<1>, Int<1>>;
  using Fusion = std::conditional_t<kRelu,
                                    cutlass::epilogue::fusion::LinCombPerColBiasEltAct<
                                        cutlass::epilogue::thread::ReLu, T, float, T>,
                                    cutlass::epilogue::fusion::LinCombPerColBias<T, float, T>>;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, RowMajor, 8, T, RowMajor,
      8, cutlass::epilogue::TmaWarpSpecializedCooperative, Fusion>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, T, RowMajor, 8, T, ColumnMajor, 8, float,
      Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename Epilogue::SharedStorage))>,
      cutlass::gemm::KernelTmaWarpSpecializedCooperative>::CollectiveOp;
  using Kernel =
      cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue>;
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::MaxThreadsPerBlock, Kernel::MinBlocksPerMultiprocessor)
    linear_forward_sm90_kernel(const __grid_constant__ typename Kernel::Params params) {
  extern __shared__ char storage[];
  Kernel kernel;
  kernel(params, storage);
}

template <class T, bool kRelu>
cudaError_t forward(const LinearParams& p, cudaStream_t stream) {
  using Kernel = typename Collective<T, kRelu>::Kernel;
  int device = 0, processors = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  if (status != cudaSuccess) return status;
  typename Kernel::Arguments arguments{};
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  arguments.problem_shape =
      cute::make_shape(static_cast<int>(p.m), static_cast<int>(p.n), static_cast<int>(p.k), 1);
  arguments.mainloop.ptr_A = static_cast<const T*>(p.x);
  arguments.mainloop.dA = {p.k, Int<1>{}, int64_t{0}};
  arguments.mainloop.ptr_B = static_cast<const T*>(p.w);
  arguments.mainloop.dB = {p.k, Int<1>{}, int64_t{0}};
  arguments.epilogue.ptr_D = static_cast<T*>(p.y);
  arguments.epilogue.dD = {p.n, Int<1>{}, int64_t{0}};
  arguments.epilogue.thread.alpha = 1.0f;
  arguments.epilogue.thread.beta = 0.0f;
  arguments.epilogue.thread.bias_ptr = static_cast<const T*>(p.bias);
  arguments.hw_info = {device, processors};
  if (!Kernel::can_implement(arguments)) return cudaErrorInvalidValue;
  const auto params = Kernel::to_underlying_arguments(arguments, nullptr);

  constexpr int kShared = Kernel::SharedStorageSize;
  auto* kernel = linear_forward_sm90_kernel<Kernel>;
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {2, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = Kernel::get_grid_shape(params);
  config.blockDim = Kernel::get_block_shape();
  config.dynamicSmemBytes = kShared;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, params);
}

template <class T>
cudaError_t forward(const LinearParams& p, cudaStream_t stream) {
  return p.relu ? forward<T, true>(p, stream) : forward<T, false>(p, stream);
}

}  // namespace

cudaError_t linear_forward_sm90(const LinearParams& p, cudaStream_t stream) {
  return p.dtype == Dtype::kBFloat16 ? forward<cutlass::bfloat16_t>(p, stream)
                                     : forward<cutlass::half_t>(p, stream);
}

}  // namespace pyops
