#include "attention/attention_backward_bf16.h"
#include "attention/attention_forward_bf16.h"

namespace pyops {

void attention_forward_avx512_bf16(const AttentionParams& params) {
  avx512_bf16::attention_forward(params);
}
void attention_backward_avx512_bf16(const AttentionBackwardParams& params) {
  avx512_bf16::attention_backward(params);
}

}  // namespace pyops
