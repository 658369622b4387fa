// Descriptors by which Hopper's TMA loads tensors of 16-bit numbers: boxes of lines of 64 columns,
// 128 bytes, or of 32, swizzled as WGMMA reads them. What lies beyond a tensor's edges is zero.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/dtype.h"

namespace pyops {

inline constexpr int kBoxColumns = 64;

// The innermost dimension first; strides in elements, of all but that, whose stride is 1.
struct MappedTensor {
  Dtype dtype;
  const void* data;
  int64_t sizes[4], strides[3];
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

inline cudaError_t encode_tensor_map(const MappedTensor& t, const int (&box)[4], CUtensorMap* map) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = find_tensor_map_encoder();
  if (encode == nullptr) return cudaErrorInsufficientDriver;
  cuuint64_t sizes[4], strides[3];
  cuuint32_t box_sizes[4];
  const cuuint32_t steps[] = {1, 1, 1, 1};
  for (int i = 0; i < 4; ++i) {
    sizes[i] = static_cast<cuuint64_t>(t.sizes[i]);
    box_sizes[i] = static_cast<cuuint32_t>(box[i]);
  }
  // Nobody steps along a dimension of one: its stride may be anything, and TMA is particular.
  for (int i = 0; i < 3; ++i) {
    strides[i] = t.sizes[i + 1] == 1 ? 16 : static_cast<cuuint64_t>(2 * t.strides[i]);
  }
  const CUtensorMapDataType type = t.dtype == Dtype::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                               : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUtensorMapSwizzle swizzle =
      box[0] == kBoxColumns ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  const CUresult result =
      encode(map, type, 4, const_cast<void*>(t.data), sizes, strides, box_sizes, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return static_cast<cudaError_t>(result);  // the runtime's numbers are the driver's
}

}  // namespace pyops
