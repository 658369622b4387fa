// Bytes that kernels of a GPU keep besides the results of a call.
#pragma once

#include "conv2d/conv2d_problem.h"
#include "conv2d/conv2d_tensorop.h"

namespace pyops {

// The masked gradient, sums in parts.
inline int64_t conv2d_backward_workspace(const Conv2dBackwardParams& p) {
  int64_t parts = position_sums(p, false, true).threads();
  if (p.grad_weight != nullptr) {
    const int64_t elements = p.o * p.group_c() * p.kh * p.kw;
    const int64_t whole = weight_splits(p) * elements;
    parts = std::max(parts, is_depthwise(p) ? position_sums(p, true, true).threads() : whole);
  }
  return masked_bytes(p) + parts * acc_bytes(p.dtype);
}
// The result of a convolution that is not pooled at once.
inline int64_t conv2d_pool_workspace(const Conv2dPoolParams& p) {
  const int64_t element = p.dtype == Dtype::kFloat64 ? 8 : p.dtype == Dtype::kFloat32 ? 4 : 2;
  return p.n * p.o * p.oh * p.ow * element;
}

}  // namespace pyops
