#include "rnn/rnn_backward_simd.h"

namespace pyops {

void rnn_forward_amx(const RnnParams& params) { amx::run_rnn<amx::RnnForward>(params); }
void rnn_backward_amx(const RnnBackwardParams& params) { amx::run_rnn<amx::RnnBackward>(params); }

}  // namespace pyops
