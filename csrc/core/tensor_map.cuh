// Descriptors by which Hopper's TMA loads tensors of 16-bit numbers: boxes of rows, 64 columns or
// 128 bytes wide, swizzled as WGMMA reads them. What lies beyond a tensor's edges is zero.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/dtype.h"

namespace pyops {

inline constexpr int kBoxColumns = 64;

// (batch, heads, rows, columns); strides in elements, the columns' is 1.
struct MappedTensor {
  Dtype dtype;
  const void* data;
  int64_t batch, heads, rows, columns;
  int64_t batch_stride, head_stride, row_stride;
};

// The driver's function, asked for at run time: nothing of ours is linked to the driver. Null where
// the driver knows none.
inline PFN_cuTensorMapEncodeTiled_v12000 find_tensor_map_encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                              12000, cudaEnableDefault, &result);
  const bool is_known = status == cudaSuccess && result == cudaDriverEntryPointSuccess;
  return is_known ? reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found) : nullptr;
}

inline cudaError_t encode_tensor_map(const MappedTensor& t, int box_rows, CUtensorMap* map) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = find_tensor_map_encoder();
  if (encode == nullptr) return cudaErrorInsufficientDriver;
  const auto count = [](int64_t n) { return static_cast<cuuint64_t>(n); };
  // Nobody steps along a dimension of one: its stride may be anything, and TMA is particular.
  const auto bytes = [](int64_t size, int64_t stride) {
    return static_cast<cuuint64_t>(size == 1 ? 16 : 2 * stride);
  };
  const cuuint64_t sizes[] = {count(t.columns), count(t.rows), count(t.heads), count(t.batch)};
  const cuuint64_t strides[] = {bytes(t.rows, t.row_stride), bytes(t.heads, t.head_stride),
                                bytes(t.batch, t.batch_stride)};
  const cuuint32_t box[] = {kBoxColumns, static_cast<cuuint32_t>(box_rows), 1, 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  const CUtensorMapDataType type = t.dtype == Dtype::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                               : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUresult result =
      encode(map, type, 4, const_cast<void*>(t.data), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return static_cast<cudaError_t>(result);  // the runtime's numbers are the driver's
}

}  // namespace pyops
