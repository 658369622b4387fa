#include "conv2d/conv2d_simd.h"
#include "conv2d/pool_simd.h"

namespace pyops {

void conv2d_forward_amx(const Conv2dParams& params) { amx::conv2d_forward(params); }
void conv2d_backward_amx(const Conv2dBackwardParams& params) { amx::conv2d_backward(params); }
void conv2d_pool_forward_amx(const Conv2dPoolParams& params) { amx::conv2d_pool_forward(params); }

}  // namespace pyops
