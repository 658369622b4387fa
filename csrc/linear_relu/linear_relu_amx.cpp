#include "linear_relu/linear_relu_simd.h"

namespace pyops {

void linear_forward_amx(const LinearParams& params) { amx::linear_forward(params); }
void linear_backward_amx(const LinearBackwardParams& params) { amx::linear_backward(params); }

}  // namespace pyops
