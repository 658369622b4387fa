#include "rnn/rnn_backward_simd.h"

namespace pyops {

void rnn_forward_avx512_bf16(const RnnParams& params) {
  avx512_bf16::run_rnn<avx512_bf16::RnnForward>(params);
}
void rnn_backward_avx512_bf16(const RnnBackwardParams& params) {
  avx512_bf16::run_rnn<avx512_bf16::RnnBackward>(params);
}

}  // namespace pyops
