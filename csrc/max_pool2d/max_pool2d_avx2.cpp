#include "max_pool2d/max_pool2d_backward_simd.h"
#include "max_pool2d/max_pool2d_separable_simd.h"

namespace pyops {

void max_pool2d_forward_avx2(const MaxPool2dParams& params) { avx2::max_pool2d_forward(params); }
void max_pool2d_backward_avx2(const MaxPool2dBackwardParams& params) {
  avx2::max_pool2d_backward(params);
}

}  // namespace pyops
