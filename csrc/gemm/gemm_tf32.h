// Products of float32 matrices on the tensor cores of any GPU from sm_80 on: by TF32 where the
// precision allows it, else by three products of TF32 with float32's accuracy.
#pragma once

#include "core/cuda_types.h"
#include "core/precision.h"
#include "gemm/tensorop_operands.h"

namespace pyops {

// D = A · Bᵀ + bias, with or without ReLU; D = A · B; D = Aᵀ · B.
cudaError_t gemm_nt_tf32(Precision precision, const TensoropOperands& o, cudaStream_t stream);
cudaError_t gemm_nn_tf32(Precision precision, const TensoropOperands& o, cudaStream_t stream);
cudaError_t gemm_tn_tf32(Precision precision, const TensoropOperands& o, cudaStream_t stream);

}  // namespace pyops
