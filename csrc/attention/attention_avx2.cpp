#include "attention/attention_simd.h"

namespace pyops {

void attention_forward_avx2(const AttentionParams& params) { avx2::attention_forward(params); }
void attention_backward_avx2(const AttentionBackwardParams& params) {
  avx2::attention_backward(params);
}

}  // namespace pyops
