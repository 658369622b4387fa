#include "linear_relu/linear_relu_simd.h"

namespace pyops {

void linear_forward_avx2(const LinearParams& params) { avx2::linear_forward(params); }
void linear_backward_avx2(const LinearBackwardParams& params) { avx2::linear_backward(params); }

}  // namespace pyops
