#include "attention/attention_backward_amx.h"
#include "attention/attention_forward_amx.h"

namespace pyops {

void attention_forward_amx(const AttentionParams& params) { amx::attention_forward(params); }
void attention_backward_amx(const AttentionBackwardParams& params) {
  amx::attention_backward(params);
}

}  // namespace pyops
