#include "conv2d/conv2d_simd.h"
#include "conv2d/pool_simd.h"

namespace pyops {

void conv2d_forward_avx512_bf16(const Conv2dParams& params) { avx512_bf16::conv2d_forward(params); }
void conv2d_backward_avx512_bf16(const Conv2dBackwardParams& params) {
  avx512_bf16::conv2d_backward(params);
}
void conv2d_pool_forward_avx512_bf16(const Conv2dPoolParams& params) {
  avx512_bf16::conv2d_pool_forward(params);
}

}  // namespace pyops
