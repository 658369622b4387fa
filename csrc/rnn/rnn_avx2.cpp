#include "rnn/rnn_backward_simd.h"

namespace pyops {

void rnn_forward_avx2(const RnnParams& params) { avx2::run_rnn<avx2::RnnForward>(params); }
void rnn_backward_avx2(const RnnBackwardParams& params) {
  avx2::run_rnn<avx2::RnnBackward>(params);
}

}  // namespace pyops
