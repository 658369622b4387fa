#include "attention/attention_backward_amx.h"
#include "attention/attention_forward_amx.h"

namespace pyops {

// Less would leave most of a panel empty; break-even against AVX-512 on Emerald Rapids, November
// 2026.
bool attention_forward_amx_takes(const AttentionParams& params) { return params.queries >= 8; }
bool attention_backward_amx_takes(const AttentionBackwardParams& params) {
  return params.queries >= 8 && params.queries * params.keys >= 4096 &&
         params.grad_mask.data == nullptr;
}

void attention_forward_amx(const AttentionParams& params) { amx::attention_forward(params); }
void attention_backward_amx(const AttentionBackwardParams& params) {
  amx::attention_backward(params);
}

}  // namespace pyops
