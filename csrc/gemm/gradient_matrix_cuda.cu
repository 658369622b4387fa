// What the backward of a layer does to its gradient besides multiplying it: the ReLU's mask, and
// the sums of its columns, of which a block takes a few and a stretch of the rows.
#include "core/cuda.cuh"
#include "gemm/gradient_matrix.h"

namespace pyops {
namespace {

template <class T>
__global__ void __launch_bounds__(kBlock)
    gemm_backward_mask_kernel(const T* grad, const T* y, T* masked, int64_t packs) {
  for (int64_t i = thread_of_grid(); i < packs; i += stride_of_grid()) {
    mask_pack(grad, y, masked, i);
  }
}

template <class Sums>
__global__ void __launch_bounds__(kBlock, kBlocksWanted)
    gemm_backward_columns_kernel(Sums whole, int64_t parts) {
  static_assert(Sums::kThreads == kBlock);
  __shared__ typename Sums::Shared shared;
  const int64_t blocks = whole.blocks();
  const Sums sums = whole.part(blockIdx.x / blocks, parts);
  const auto block = static_cast<int64_t>(blockIdx.x) % blocks;
  sums.accumulate(block, static_cast<int>(threadIdx.x), shared);
  __syncthreads();
  sums.finish(block, static_cast<int>(threadIdx.x), shared);
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    gemm_backward_parts_kernel(T* to, const void* sums, int64_t parts, int64_t count) {
  for (int64_t e = thread_of_grid(); e < count; e += stride_of_grid()) {
    to[e] = static_cast<T>(sum_of_parts<acc_t<T>>(sums, parts, count, e));
  }
}

template <class Sums>
cudaError_t launch_sums(const Sums& sums, int64_t parts, cudaStream_t stream) {
  return launch(gemm_backward_columns_kernel<Sums>, sums.blocks() * parts * kBlock, stream, sums,
                parts);
}

}  // namespace

cudaError_t mask_gradient_cuda(const GradientMatrix& matrix, const void* grad, const void* y,
                               void* masked, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype<kTileTypes>(matrix.dtype, [&]<class T>(T) {
    status =
        launch(gemm_backward_mask_kernel<T>, matrix.packs(), stream, static_cast<const T*>(grad),
               static_cast<const T*>(y), static_cast<T*>(masked), matrix.packs());
  });
  return status;
}

cudaError_t add_parts_cuda(Dtype dtype, void* to, const void* sums, int64_t parts, int64_t count,
                           cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype(dtype, [&]<class T>(T) {
    status = launch(gemm_backward_parts_kernel<T>, count, stream, static_cast<T*>(to), sums, parts,
                    count);
  });
  return status;
}

cudaError_t sum_columns_cuda(const GradientMatrix& matrix, const void* grad, void* sums,
                             void* workspace, cudaStream_t stream) {
  const int64_t parts = matrix.parts(), rows = matrix.rows, columns = matrix.columns;
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype<kTileTypes>(matrix.dtype, [&]<class T>(T) {
    const T* from = static_cast<const T*>(grad);
    const ColumnSums<T> at_once{from, static_cast<T*>(sums), rows, columns};
    const ColumnSums<T, float> in_parts{from, static_cast<float*>(workspace), rows, columns};
    status = parts == 1 ? launch_sums(at_once, 1, stream) : launch_sums(in_parts, parts, stream);
  });
  if (status != cudaSuccess || parts == 1) return status;
  return add_parts_cuda(matrix.dtype, sums, workspace, parts, columns, stream);
}

}  // namespace pyops
