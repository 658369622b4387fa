// All steps of a layer's forward in one launch, for padded sequences: each block of threads owns
// some units for good and keeps their recurrent weights in shared memory, after the persistent RNNs
// of Diamos et al. 2016. What a lane computes is a function, so that a CPU can run the lanes in
// turn.
#pragma once

#include "rnn/rnn_forward_product.h"

namespace pyops {

// A warp multiplies the weights of a unit with the states of some rows, each lane every 32nd
// feature.
template <class Cell, class T>
struct RnnResident {
  using Acc = acc_t<T>;
  static constexpr int kLanes = 32, kRows = 4, kGates = Cell::kGates;

  // A lane's part of a sum for each row and gate; the fourth of a GRU stays zero.
  struct Sums {
    Acc at[kRows][4];
  };

  // The s-th step, whose rows are those of every step.
  PYOPS_HOST_DEVICE static RnnStep step_at(const RnnParams& p, int64_t s) {
    const int64_t b = p.batch, known = s > 0 ? b : 0, onward = s + 1 < p.steps ? b : 0;
    const int64_t before = s > 0 ? p.step(s - 1) * b : 0;
    return {p.step(s) * b, b, before, known, onward > 0 ? p.step(s + 1) * b : 0, onward};
  }

  // Where a block of `blocks` finds its first unit; it has those up to the next one's first.
  PYOPS_HOST_DEVICE static int64_t first_unit(const RnnParams& p, int64_t block, int64_t blocks) {
    return p.hidden * block / blocks;
  }
  PYOPS_HOST_DEVICE static int64_t most_units(const RnnParams& p, int64_t blocks) {
    return (p.hidden + blocks - 1) / blocks;
  }

  // The weights of gate g of unit u, which shared memory holds unit by unit.
  PYOPS_HOST_DEVICE static const T* row_of(const RnnParams& p, int64_t u, int g) {
    return static_cast<const T*>(p.w_hh) + (g * p.hidden + u) * p.output;
  }

  // `weights`: those of the unit's gates, `line` apart. Rows from `row` on; beyond the last are
  // none.
  PYOPS_HOST_DEVICE static Sums accumulate(const RnnParams& p, const RnnStep& step,
                                           const T* weights, int64_t line, int64_t row, int lane) {
    Sums sums{};
    const T* states = static_cast<const T*>(step.known > 0 ? p.y : p.h0);
    const int64_t first = step.known > 0 ? step.before : 0;
    for (int64_t q = lane; q < p.output; q += kLanes) {
      Acc w[kGates];
      PYOPS_UNROLL for (int g = 0; g < kGates; ++g) w[g] = static_cast<Acc>(weights[g * line + q]);
      PYOPS_UNROLL for (int r = 0; r < kRows; ++r) {
        if (row + r >= step.rows) continue;
        const Acc h = static_cast<Acc>(states[(first + row + r) * p.output + q]);
        PYOPS_UNROLL for (int g = 0; g < kGates; ++g) sums.at[r][g] += w[g] * h;
      }
    }
    return sums;
  }

  // With the sums of all lanes, one lane for each row finishes the unit.
  PYOPS_HOST_DEVICE static void finish(const RnnParams& p, const RnnStep& step, int64_t u,
                                       int64_t row, int lane, const Sums& sums) {
    const RnnStepProduct<Cell, T> product{p, step};
    PYOPS_UNROLL for (int r = 0; r < kRows; ++r) {
      if (lane == r && row + r < step.rows) product.store_four(row + r, 4 * u, sums.at[r]);
    }
  }
};

// Every block reads the states of all rows at every step: few rows, or tiles serve better. Weights
// beyond what GPUs hold would be read again at every step too.
inline bool suits_resident(const RnnParams& p) {
  constexpr int64_t kMostRows = 128, kMostWeights = int64_t{16} << 20;
  const int64_t gates = p.cell == RnnCell::kLstm ? 4 : 3;
  int64_t bytes = 0;
  dispatch_dtype(p.dtype, [&]<class T>(T) { bytes = gates * p.hidden * p.output * sizeof(T); });
  return p.steps > 1 && p.rows() == p.steps * p.batch && p.batch > 0 && p.batch <= kMostRows &&
         p.hidden > 0 && !p.projects() && bytes <= kMostWeights;
}
inline constexpr const char* kSuitsResident =
    "several steps of 1 to 128 padded sequences, w_hh of at most 16 MiB, no projection";

cudaError_t rnn_inputs_cuda(const RnnParams& params, cudaStream_t stream);  // their product alone
cudaError_t rnn_forward_resident_cuda(const RnnParams& params, cudaStream_t stream);

}  // namespace pyops
