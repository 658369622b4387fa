// Bytes that kernels of a GPU keep besides the results of a call.
#pragma once

#include "conv2d/conv2d_problem.h"
#include "conv2d/conv2d_tensorop.h"

namespace pyops {

// Of grad_weight, a sum for every stretch of the positions.
inline int64_t weight_parts_bytes(const Conv2dBackwardParams& p) {
  if (p.grad_weight == nullptr) return 0;
  return weight_splits(p) * p.weights() * acc_bytes(p.dtype);
}
inline int64_t position_sums_bytes(const Conv2dBackwardParams& p, bool weight) {
  return position_sums(p, weight, p.grad_bias != nullptr).threads() * acc_bytes(p.dtype);
}

inline int64_t conv2d_backward_workspace(const Conv2dBackwardParams& p) {
  return std::max(weight_parts_bytes(p), position_sums_bytes(p, false));
}
inline int64_t conv2d_backward_workspace_depthwise(const Conv2dBackwardParams& p) {
  return position_sums_bytes(p, p.grad_weight != nullptr);
}
inline int64_t conv2d_backward_workspace_tensorop(const Conv2dBackwardParams& p) {
  return backward_workspace(p, weight_parts_bytes(p));
}

// The result of a convolution that is not pooled at once.
inline int64_t conv2d_pool_workspace(const Conv2dPoolParams& p) {
  const int64_t element = p.dtype == Dtype::kFloat64 ? 8 : p.dtype == Dtype::kFloat32 ? 4 : 2;
  return p.n * p.o * p.oh * p.ow * element;
}

}  // namespace pyops
