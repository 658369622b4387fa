#include "rnn/rnn_backward_simd.h"

namespace pyops {

void rnn_forward_avx512(const RnnParams& params) { avx512::run_rnn<avx512::RnnForward>(params); }
void rnn_backward_avx512(const RnnBackwardParams& params) {
  avx512::run_rnn<avx512::RnnBackward>(params);
}

}  // namespace pyops
