// y = x·wᵀ + b, with or without ReLU, and its gradients.
//
// M: rows of x (all leading dimensions)   K: in_features   N: out_features
#pragma once

#include <cstdint>

#include "core/cuda_types.h"
#include "core/dtype.h"
#include "core/precision.h"

namespace pyops {

struct LinearParams {
  Dtype dtype;
  Precision precision;
  int64_t m, n, k;
  bool relu;
  const void* x;     // (M, K)
  const void* w;     // (N, K)
  const void* bias;  // (N) or null
  void* y;           // (M, N)
};

// All matrices are contiguous and row-major. A null gradient is not wanted.
struct LinearBackwardParams {
  Dtype dtype;
  Precision precision;
  int64_t m, n, k;
  const void* grad_y;  // (M, N)
  const void* y;       // (M, N): where it is at most zero the gradient is zero; null without ReLU
  const void* x;       // (M, K)
  const void* w;       // (N, K)
  void* grad_x;        // (M, K)
  void* grad_w;        // (N, K)
  void* grad_bias;     // (N)
  void* workspace = nullptr;  // of the bytes that the table's row asks for; null on the CPU
};

void linear_forward_scalar(const LinearParams& params);
void linear_forward_avx2(const LinearParams& params);
void linear_forward_avx512(const LinearParams& params);
void linear_forward_avx512_bf16(const LinearParams& params);
void linear_forward_amx(const LinearParams& params);
cudaError_t linear_forward_sm90(const LinearParams& params, cudaStream_t stream);
cudaError_t linear_forward_tensorop_cuda(const LinearParams& params, cudaStream_t stream);
cudaError_t linear_forward_tf32_cuda(const LinearParams& params, cudaStream_t stream);
cudaError_t linear_forward_3xtf32_cuda(const LinearParams& params, cudaStream_t stream);
cudaError_t linear_forward_cuda(const LinearParams& params, cudaStream_t stream);

void linear_backward_scalar(const LinearBackwardParams& params);
void linear_backward_avx2(const LinearBackwardParams& params);
void linear_backward_avx512(const LinearBackwardParams& params);
void linear_backward_avx512_bf16(const LinearBackwardParams& params);
void linear_backward_amx(const LinearBackwardParams& params);
cudaError_t linear_backward_sm90(const LinearBackwardParams& params, cudaStream_t stream);
int64_t linear_backward_workspace_sm90(const LinearBackwardParams& params);
cudaError_t linear_backward_tensorop_cuda(const LinearBackwardParams& params, cudaStream_t stream);
cudaError_t linear_backward_tf32_cuda(const LinearBackwardParams& params, cudaStream_t stream);
cudaError_t linear_backward_3xtf32_cuda(const LinearBackwardParams& params, cudaStream_t stream);
cudaError_t linear_backward_cuda(const LinearBackwardParams& params, cudaStream_t stream);

}  // namespace pyops
