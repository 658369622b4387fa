#include "attention/attention_backward_amx.h"
#include "attention/attention_forward_amx.h"

namespace pyops {

namespace {

// Native computes other dimensions of values than of keys in float32; in narrow ones the weights'
// rounding to bfloat16 shows beside that.
bool rounds_as_native(const AttentionShape& shape) {
  return shape.dim == shape.value_dim || std::min(shape.dim, shape.value_dim) >= 16;
}

}  // namespace

// Less would leave most of a panel empty; break-even against AVX-512 on Emerald Rapids, November
// 2026.
bool attention_forward_amx_takes(const AttentionParams& params) {
  return params.queries >= 8 && rounds_as_native(params);
}
bool attention_backward_amx_takes(const AttentionBackwardParams& params) {
  return params.queries >= 8 && params.queries * params.keys >= 4096 &&
         params.grad_mask.data == nullptr && rounds_as_native(params);
}

void attention_forward_amx(const AttentionParams& params) { amx::attention_forward(params); }
void attention_backward_amx(const AttentionBackwardParams& params) {
  amx::attention_backward(params);
}

}  // namespace pyops
