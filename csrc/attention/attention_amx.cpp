#include "attention/attention_backward_bf16.h"
#include "attention/attention_forward_bf16.h"

namespace pyops {

void attention_forward_amx(const AttentionParams& params) { amx::attention_forward(params); }
void attention_backward_amx(const AttentionBackwardParams& params) {
  amx::attention_backward(params);
}

}  // namespace pyops
