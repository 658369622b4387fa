#include "linear_relu/linear_relu_simd.h"

namespace pyops {

void linear_forward_avx512_bf16(const LinearParams& params) { avx512_bf16::linear_forward(params); }
void linear_backward_avx512_bf16(const LinearBackwardParams& params) {
  avx512_bf16::linear_backward(params);
}

}  // namespace pyops
