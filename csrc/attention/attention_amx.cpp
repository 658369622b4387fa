#include "attention/attention_forward_amx.h"

namespace pyops {

bool attention_forward_amx_takes(const AttentionParams& params) { return params.queries >= 8; }

void attention_forward_amx(const AttentionParams& params) { amx::attention_forward(params); }

}  // namespace pyops
