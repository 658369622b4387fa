// What the kernels that CUTLASS's collectives build for Hopper share: two warpgroups multiply a
// tile that a third loads by TMA, and finish it before the only store; launching them.
#pragma once

#include "gemm/encoded_maps.cuh"

// Behind it all of CUTLASS's.
#include <cute/tensor.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <limits>
#include <type_traits>

#include "core/dtype.h"

namespace pyops::sm90 {

using cute::Int;
using cute::Shape;
using cutlass::layout::ColumnMajor;
using cutlass::layout::RowMajor;

template <int kM, int kN, int kK>
using Tile = Shape<Int<kM>, Int<kN>, Int<kK>>;

// Sums as they are, or with a bias to a column and not below a bound: one kernel for both sides of
// a ReLU. Nothing is added to them: with a source that is not void, and none to load, the epilogue
// would add zero times whatever its registers hold.
enum class Finish { kPlain, kBiasAndBound };

template <class T, Finish kFinish>
using Fusion = std::conditional_t<kFinish == Finish::kBiasAndBound,
                                  cutlass::epilogue::fusion::LinCombPerColBiasEltAct<
                                      cutlass::epilogue::thread::Clamp, T, float, T, void>,
                                  cutlass::epilogue::fusion::ScaledAcc<T, float>>;

template <class T, class Tile, class Cluster, Finish kFinish>
using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
    cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, RowMajor, 8, T, RowMajor,
    8, cutlass::epilogue::TmaWarpSpecializedCooperative, Fusion<T, kFinish>>::CollectiveOp;

// What the epilogue leaves of the shared memory holds stages.
template <class Epilogue>
using Stages = cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
    sizeof(typename Epilogue::SharedStorage))>;

template <class Arguments>
void set_finish(Arguments& finish, const void* bias, bool relu) {
  using Bias = decltype(finish.bias_ptr);
  finish.bias_ptr = static_cast<Bias>(bias);
  finish.activation.lower_bound = relu ? 0.0f : -std::numeric_limits<float>::infinity();
  finish.activation.upper_bound = std::numeric_limits<float>::infinity();
}

template <class Kernel>
__device__ void run(const typename Kernel::Params& params) {
  extern __shared__ char storage[];
  Kernel kernel;
  kernel(params, storage);
}

inline cudaError_t get_hardware(cutlass::KernelHardwareInfo& hardware) {
  const cudaError_t status = cudaGetDevice(&hardware.device_id);
  if (status != cudaSuccess) return status;
  return cudaDeviceGetAttribute(&hardware.sm_count, cudaDevAttrMultiProcessorCount,
                                hardware.device_id);
}

// Bytes of the workspace that the launch wants.
template <class Kernel>
int64_t workspace_bytes(typename Kernel::Arguments arguments) {
  if (get_hardware(arguments.hw_info) != cudaSuccess) return 0;  // nor will it be launched
  return static_cast<int64_t>(Kernel::get_workspace_size(arguments));
}

template <class Kernel>
cudaError_t launch(void (*kernel)(typename Kernel::Params), typename Kernel::Arguments arguments,
                   void* workspace, cudaStream_t stream) {
  cudaError_t status = get_hardware(arguments.hw_info);
  if (status != cudaSuccess) return status;
  using cutlass::Status;
  if (!Kernel::can_implement(arguments)) return cudaErrorInvalidValue;
  if (Kernel::initialize_workspace(arguments, workspace, stream) != Status::kSuccess) {
    return cudaErrorInvalidValue;
  }
  refused_map = CUDA_SUCCESS;
  const auto params = Kernel::to_underlying_arguments(arguments, workspace);
  if (refused_map != CUDA_SUCCESS) return static_cast<cudaError_t>(refused_map);
  constexpr int kShared = Kernel::SharedStorageSize;
  static_assert(kShared <= cutlass::gemm::collective::detail::sm90_smem_capacity_bytes);
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  if (status != cudaSuccess) return status;
  using Cluster = typename Kernel::ClusterShape;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {cute::size<0>(Cluster{}), cute::size<1>(Cluster{}), 1};
  cudaLaunchConfig_t config{};
  config.gridDim = Kernel::get_grid_shape(params);
  config.blockDim = Kernel::get_block_shape();
  config.dynamicSmemBytes = kShared;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, params);
}

// f(T{}) with CUTLASS's name of the element type.
template <class F>
auto with_half_type(Dtype dtype, F&& f) {
  return dtype == Dtype::kBFloat16 ? f(cutlass::bfloat16_t{}) : f(cutlass::half_t{});
}

}  // namespace pyops::sm90
