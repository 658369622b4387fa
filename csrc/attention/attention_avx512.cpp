#include "attention/attention_simd.h"

namespace pyops {

void attention_forward_avx512(const AttentionParams& params) { avx512::attention_forward(params); }
void attention_backward_avx512(const AttentionBackwardParams& params) {
  avx512::attention_backward(params);
}

}  // namespace pyops
