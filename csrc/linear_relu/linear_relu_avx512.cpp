#include "linear_relu/linear_relu_simd.h"

namespace pyops {

void linear_forward_avx512(const LinearParams& params) { avx512::linear_forward(params); }
void linear_backward_avx512(const LinearBackwardParams& params) { avx512::linear_backward(params); }

}  // namespace pyops
