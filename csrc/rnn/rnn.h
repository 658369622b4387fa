// One direction of one LSTM or GRU layer over padded or packed sequences, and its gradients.
//
// T: steps   B: sequences   I: input features   H: hidden units   R: recurrent features, H unless
// the LSTM projects its output   G: gates per unit   K: numbers a unit keeps for the backward
//
// Step t owns rows offsets[t] to offsets[t + 1]; row i of a step is sequence i. Sequences come
// longest first, so a step's rows are a prefix of the batch, and padding is the case where each
// step has B of them. N = offsets[T] rows in all.
#pragma once

#include <cstdint>

#include "core/cuda_types.h"
#include "core/dtype.h"
#include "core/gpu_limits.h"
#include "core/host_device.h"
#include "core/precision.h"

namespace pyops {

// One step of a sweep over the sequences. Its first `known` rows begin with the state that the step
// before left from row `before` on, the others with their initial state; its first `onward` rows
// hand their state to the step after, which has it from row `after` on; the others end here.
struct RnnStep {
  int64_t first, rows, before, known, after, onward;
};

enum class RnnCell : uint8_t { kLstm, kGru };

struct RnnShape {
  Dtype dtype;
  Precision precision;
  RnnCell cell;
  bool reverse;  // last step first
  int64_t steps, batch, input, hidden, output;
  const int64_t* offsets;  // (T + 1)
  GpuLimits gpu{};         // where the call runs

  PYOPS_HOST_DEVICE int64_t rows() const { return offsets[steps]; }
  // Of a step, on average.
  PYOPS_HOST_DEVICE int64_t step_rows() const { return rows() / (steps > 0 ? steps : 1); }
  PYOPS_HOST_DEVICE int64_t size(int64_t t) const { return offsets[t + 1] - offsets[t]; }
  // The s-th to compute.
  PYOPS_HOST_DEVICE int64_t step(int64_t s) const { return reverse ? steps - 1 - s : s; }
  PYOPS_HOST_DEVICE bool projects() const { return output != hidden; }
  PYOPS_HOST_DEVICE int64_t gates() const { return cell == RnnCell::kLstm ? 4 : 3; }

  // The s-th to compute; beyond either end is a step without rows.
  RnnStep step_at(int64_t s) const {
    const auto rows_at = [&](int64_t k) { return k < 0 || k >= steps ? 0 : size(step(k)); };
    const auto first_at = [&](int64_t k) { return k < 0 || k >= steps ? 0 : offsets[step(k)]; };
    const int64_t rows = rows_at(s), before = rows_at(s - 1), after = rows_at(s + 1);
    return {first_at(s),     rows,
            first_at(s - 1), before < rows ? before : rows,
            first_at(s + 1), after < rows ? after : rows};
  }

  // The row that holds the state sequence `i` brings to step t; -1 for its initial state.
  PYOPS_HOST_DEVICE int64_t previous_row(int64_t t, int64_t i) const {
    if (!reverse) return t > 0 ? offsets[t - 1] + i : -1;
    return t + 1 < steps && i < size(t + 1) ? offsets[t + 1] + i : -1;
  }
};

// Blocks of a launch for all steps wait for those of their team alone; counters lie apart, for the
// memory serves one request for a line after the other.
inline constexpr int64_t kRnnTeams = 16, kRnnTeamStride = 32;
inline constexpr int64_t kRnnArrivals = kRnnTeams * kRnnTeamStride;  // 32-bit counts of a layer

// All matrices are contiguous and row-major. The reserve is in the type arithmetic is done in.
struct RnnParams : RnnShape {
  bool save;         // keep in `reserve` what the backward reads
  const void* x;     // (N, I)
  const void* h0;    // (B, R)
  const void* c0;    // (B, H), LSTM
  const void* w_ih;  // (G·H, I)
  const void* w_hh;  // (G·H, R)
  const void* b_ih;  // (G·H) or null
  const void* b_hh;  // (G·H) or null
  const void* w_hr;  // (R, H) or null
  void* y;           // (N, R)
  void* hn;          // (B, R)
  void* cn;          // (B, H), LSTM
  void* reserve;     // (N, K·H); (N, G·H) without `save`, then a workspace
  // For the use of a GPU's kernels, in the type arithmetic is done in.
  void* c;         // (B, H), LSTM
  void* out;       // (B, H) with a projection
  void* arrivals;  // of blocks at each step, (kRnnTeams, kRnnTeamStride) 32-bit counts
};

// A null gradient of an output is zero; a null gradient of an input is not wanted.
struct RnnBackwardParams : RnnShape {
  const void *x, *h0, *c0, *w_ih, *w_hh, *w_hr, *y, *reserve;
  const void *grad_y, *grad_hn, *grad_cn;
  void *grad_x, *grad_h0, *grad_c0, *grad_w_ih, *grad_w_hh, *grad_b_ih, *grad_b_hh, *grad_w_hr;
  // For the use of a GPU's kernels.
  void* from_x;    // (N, G·H): gradients of W_ih·x + b_ih
  void* from_h;    // (N, G·H): of W_hh·h + b_hh; an LSTM's are the same
  void* previous;  // (N, R): the state that each row began with
  void* grad_out;  // (N, R) with a projection: the gradient of y, also by way of the later steps
  void* carry;     // (B, H), in the type arithmetic is done in: what passes a step by its products
  void* arrivals;  // as in the forward
  void* workspace = nullptr;  // of the bytes that the table's row asks for
};

void rnn_forward_scalar(const RnnParams& params);
void rnn_forward_avx2(const RnnParams& params);
void rnn_forward_avx512(const RnnParams& params);
void rnn_forward_avx512_bf16(const RnnParams& params);
void rnn_forward_amx(const RnnParams& params);
cudaError_t rnn_forward_resident_tensorop_cuda(const RnnParams& params, cudaStream_t stream);
cudaError_t rnn_forward_resident_cuda(const RnnParams& params, cudaStream_t stream);
cudaError_t rnn_forward_tensorop_cuda(const RnnParams& params, cudaStream_t stream);
cudaError_t rnn_forward_cuda(const RnnParams& params, cudaStream_t stream);

void rnn_backward_scalar(const RnnBackwardParams& params);
void rnn_backward_avx2(const RnnBackwardParams& params);
void rnn_backward_avx512(const RnnBackwardParams& params);
void rnn_backward_avx512_bf16(const RnnBackwardParams& params);
void rnn_backward_amx(const RnnBackwardParams& params);
cudaError_t rnn_backward_resident_sm90(const RnnBackwardParams& params, cudaStream_t stream);
cudaError_t rnn_backward_resident_tensorop_cuda(const RnnBackwardParams& p, cudaStream_t stream);
cudaError_t rnn_backward_resident_cuda(const RnnBackwardParams& params, cudaStream_t stream);
cudaError_t rnn_backward_tensorop_cuda(const RnnBackwardParams& params, cudaStream_t stream);
cudaError_t rnn_backward_cuda(const RnnBackwardParams& params, cudaStream_t stream);

// The weights' gradients, behind launches for all steps.
cudaError_t rnn_backward_weights_cuda(const RnnBackwardParams& params, cudaStream_t stream);
int64_t rnn_backward_workspace_sm90(const RnnBackwardParams& params);

}  // namespace pyops
