// Products of dense row-major matrices of half precision on Hopper: what linear layers are, and
// convolutions whose kernel is one pixel. Lines are multiples of 16 bytes and begin at them.
#pragma once

#include <cstdint>

#include "core/cuda_types.h"
#include "core/dtype.h"

namespace pyops {

struct GemmSm90Params {
  Dtype dtype;
  int64_t rows, columns, depth;
  const void *a, *b;
  void* d;                     // (rows, columns)
  const void* bias = nullptr;  // (columns) or null
  bool relu = false;
};

// d = a (rows, depth) · b (columns, depth)ᵀ + bias, then ReLU
cudaError_t gemm_nt_sm90(const GemmSm90Params& params, cudaStream_t stream);
// d = a (rows, depth) · b (depth, columns)
cudaError_t gemm_nn_sm90(const GemmSm90Params& params, cudaStream_t stream);
// d = a (depth, rows)ᵀ · b (depth, columns): a deep sum, cut into parts where there are few tiles,
// which are added in their order. The workspace has the bytes that are asked for below.
cudaError_t gemm_tn_sm90(const GemmSm90Params& params, void* workspace, cudaStream_t stream);
int64_t gemm_tn_workspace_sm90(const GemmSm90Params& params);

}  // namespace pyops
