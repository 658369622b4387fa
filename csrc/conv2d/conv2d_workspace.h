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
// Of several launches, beside the sums over one's stretches that over the images before.
inline int64_t conv2d_backward_workspace_tensorop(const Conv2dBackwardParams& p) {
  const bool at_once = p.n <= images_of_launch(p, p.dtype);
  const int64_t before = at_once || p.grad_weight == nullptr ? 0 : p.weights() * acc_bytes(p.dtype);
  return backward_workspace(p, weight_parts_bytes(p) + before);
}

// The result of a convolution that is not pooled at once.
inline int64_t conv2d_pool_workspace(const Conv2dPoolParams& p) {
  return std::min(p.n, images_of_pooling(p)) * p.o * p.oh * p.ow * element_bytes(p.dtype);
}

}  // namespace pyops
