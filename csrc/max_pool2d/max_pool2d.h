// Max pooling over height and width, and its gradient.
//
// N: batch   C: channels   H W: `h.size`, `w.size` of the input   OH OW: of the output
// Tensors lie as (N, C, H, W), or as (N, H, W, C) with `channels_last`.
// The first maximum of a window in row-major order wins; a NaN wins over numbers and earlier NaNs.
#pragma once

#include <cstdint>

#include "core/cuda_types.h"
#include "core/dtype.h"
#include "core/pool_window.h"

namespace pyops {

// What is known of where a maximum came from.
enum class Argmax : uint8_t {
  kNone,
  kTap,    // uint8_t: position inside the kernel, row * kernel width + column
  kIndex,  // int64_t: position inside the input plane, row * W + column
};

struct MaxPool2dParams {
  Dtype dtype;
  Argmax argmax;
  bool channels_last;
  int64_t n, c;
  PoolAxis h, w;
  int64_t oh, ow;
  const void* x;  // (N, C, H, W)
  void* y;        // (N, C, OH, OW)
  void* where;    // (N, C, OH, OW) of what `argmax` says
};

// A window that lies in the padding alone has no maximum, and passes no gradient.
struct MaxPool2dBackwardParams {
  Dtype dtype;
  Argmax argmax;
  bool channels_last;
  int64_t n, c;
  PoolAxis h, w;
  int64_t oh, ow;
  const void* grad_y;  // (N, C, OH, OW)
  const void* where;   // (N, C, OH, OW), as the forward left it
  void* grad_x;        // (N, C, H, W), every element is written
};

// Rows of so many elements that pay for waking a thread.
PYOPS_HOST_DEVICE inline int64_t row_grain(int64_t row_elements) {
  return row_elements < 16384 ? 16384 / row_elements : 1;
}

void max_pool2d_forward_scalar(const MaxPool2dParams& params);
void max_pool2d_forward_avx2(const MaxPool2dParams& params);
void max_pool2d_forward_avx512(const MaxPool2dParams& params);

cudaError_t max_pool2d_forward_cuda(const MaxPool2dParams& params, cudaStream_t stream);
cudaError_t max_pool2d_forward_strips_cuda(const MaxPool2dParams& params, cudaStream_t stream);
cudaError_t max_pool2d_forward_channels_cuda(const MaxPool2dParams& params, cudaStream_t stream);
cudaError_t max_pool2d_forward_teams_cuda(const MaxPool2dParams& params, cudaStream_t stream);
cudaError_t max_pool2d_forward_windows_cuda(const MaxPool2dParams& params, cudaStream_t stream);

void max_pool2d_backward_scalar(const MaxPool2dBackwardParams& params);
void max_pool2d_backward_avx2(const MaxPool2dBackwardParams& params);
void max_pool2d_backward_avx512(const MaxPool2dBackwardParams& params);
cudaError_t max_pool2d_backward_cuda(const MaxPool2dBackwardParams& params, cudaStream_t stream);
cudaError_t max_pool2d_backward_strips_cuda(const MaxPool2dBackwardParams& params,
                                            cudaStream_t stream);
cudaError_t max_pool2d_backward_channels_cuda(const MaxPool2dBackwardParams& params,
                                              cudaStream_t stream);
cudaError_t max_pool2d_backward_windows_cuda(const MaxPool2dBackwardParams& params,
                                             cudaStream_t stream);

}  // namespace pyops
