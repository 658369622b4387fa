// Many steps of a layer in one launch, forward or back: each block of threads owns some units for
// good and keeps their recurrent weights on chip, after the persistent RNNs of Diamos et al. 2016.
// What a lane computes is a function, so that a CPU can run the lanes in turn.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "core/pack.h"
#include "rnn/rnn_backward_product.h"
#include "rnn/rnn_schedule.h"

namespace pyops {

// The products of a piece's steps, in turn.
template <class Cell, class T>
struct RnnForwardSweep {
  using Type = T;
  using Params = RnnParams;
  using Product = RnnStepProduct<Cell, T>;

  PYOPS_HOST_DEVICE static int32_t steps(const RnnPiece<Params>& piece) {
    return piece.end - piece.begin;
  }
  PYOPS_HOST_DEVICE static RnnSweep start(const RnnPiece<Params>& piece, const RnnSchedule& s) {
    return {s, piece.p.reverse, piece.begin - 1};
  }
  PYOPS_HOST_DEVICE static Product next(const RnnParams& p, RnnSweep& sweep) {
    sweep.advance();
    return {p, sweep.step()};
  }
};

// Last first; the step before the first of all is for the initial states.
template <class Cell, class T>
struct RnnBackwardSweep {
  using Type = T;
  using Params = RnnBackwardParams;
  using Product = RnnUnitsProduct<Cell, T, false>;

  PYOPS_HOST_DEVICE static int32_t steps(const RnnPiece<Params>& piece) {
    const bool to_initial = piece.p.grad_h0 != nullptr || piece.p.grad_c0 != nullptr;
    return piece.end - piece.begin + (piece.begin == 0 && to_initial ? 1 : 0);
  }
  PYOPS_HOST_DEVICE static RnnSweep start(const RnnPiece<Params>& piece, const RnnSchedule& s) {
    return {s, piece.p.reverse, piece.end};
  }
  PYOPS_HOST_DEVICE static Product next(const RnnBackwardParams& p, RnnSweep& sweep) {
    sweep.retreat();
    return {{p, sweep.step(), sweep.rows_after()}};
  }
};

// On ordinary units: a warp multiplies the weights of a unit with the operands of some rows, each
// lane kWidth neighbours of every 32·kWidth, as many as one load brings.
template <class Sweep, int kWidth>
struct RnnResident {
  using T = typename Sweep::Type;
  using Product = typename Sweep::Product;
  using Acc = acc_t<T>;
  static constexpr int kLanes = 32, kRows = 4;
  static constexpr int kColumns = Product::kColumns, kColumnsUsed = Product::kColumnsUsed;

  struct alignas(kWidth * sizeof(T)) Neighbours {
    T at[kWidth];
  };
  // A lane's part of a sum for each row and column; the unused one of a GRU stays zero.
  struct Sums {
    Acc at[kRows][kColumns];
  };

  // Where a block of `blocks` finds its first unit; it has those up to the next one's first.
  PYOPS_HOST_DEVICE static int64_t first_unit(int64_t units, int64_t block, int64_t blocks) {
    return units * block / blocks;
  }

  // A block's e-th number of the weights that it keeps, of units from `unit` on: column by column.
  PYOPS_HOST_DEVICE static T weight(const Product& product, int64_t unit, int64_t e) {
    const int64_t column = e / product.depth;
    const int64_t j = (unit + column / kColumnsUsed) * kColumns + column % kColumnsUsed;
    return product.weight(e % product.depth, j);
  }

  // `weights`: those of the unit. Rows from `row` on; beyond the last are none.
  PYOPS_HOST_DEVICE static Sums accumulate(const Product& product, const T* weights, int64_t row,
                                           int lane) {
    Sums sums{};
    const T* from[kRows];
    PYOPS_UNROLL for (int r = 0; r < kRows; ++r) {
      from[r] = row + r < product.rows ? product.operand(row + r) : nullptr;
    }
    const auto load = [](const T* at) { return *reinterpret_cast<const Neighbours*>(at); };
    const auto depth = static_cast<int>(product.depth);  // weights on chip are not many
    for (int q = lane * kWidth; q < depth; q += kLanes * kWidth) {
      Neighbours w[kColumnsUsed];
      PYOPS_UNROLL for (int c = 0; c < kColumnsUsed; ++c) w[c] = load(weights + c * depth + q);
      PYOPS_UNROLL for (int r = 0; r < kRows; ++r) {
        if (from[r] == nullptr) continue;
        const Neighbours x = load(from[r] + q);
        PYOPS_UNROLL for (int c = 0; c < kColumnsUsed; ++c) {
          PYOPS_UNROLL for (int v = 0; v < kWidth; ++v) {
            sums.at[r][c] += static_cast<Acc>(w[c].at[v]) * static_cast<Acc>(x.at[v]);
          }
        }
      }
    }
    return sums;
  }

  // With the sums of all lanes: one lane for each row finishes the unit.
  PYOPS_HOST_DEVICE static bool finishes(const Product& product, int64_t row, int lane) {
    return lane < kRows && row + lane < product.rows;
  }
  PYOPS_HOST_DEVICE static void finish(const Product& product, int64_t unit, int64_t row, int lane,
                                       const Sums& sums, const typename Product::Given& given) {
    if (!finishes(product, row, lane)) return;
    Acc mine[kColumns]{};
    PYOPS_UNROLL for (int r = 0; r < kRows; ++r) {
      PYOPS_UNROLL for (int c = 0; c < kColumns; ++c) mine[c] = r == lane ? sums.at[r][c] : mine[c];
    }
    product.finish(row + lane, unit, mine, given);
  }
};

// The most units that one of `blocks` has.
inline int64_t most_resident_units(const RnnShape& s, int64_t blocks) {
  return (s.hidden + blocks - 1) / blocks;
}
inline int64_t resident_blocks(const RnnShape& s) {
  return s.hidden < s.gpu.processors ? s.hidden : s.gpu.processors;
}
inline int64_t resident_bytes(const RnnShape& s) {
  int64_t size = 0;
  dispatch_dtype(s.dtype, [&]<class T>(T) { size = sizeof(T); });
  return most_resident_units(s, resident_blocks(s)) * s.gates() * s.output * size;
}

// Every block reads what the step before left of all rows: few rows, or tiles serve better.
inline bool suits_launch_for_all_steps(const RnnShape& s) {
  return s.steps > 1 && s.steps <= RnnSchedule::kMostSteps && s.batch > 0 &&
         s.batch <= RnnSchedule::kMostSequences && s.rows() > 0 && s.hidden > 0 && !s.projects() &&
         s.gpu.processors > 0;
}
// Whether a lane can take 16 bytes of neighbours.
inline bool has_packs(const RnnShape& s, std::initializer_list<const void*> operands) {
  return s.hidden % pack_width(s.dtype) == 0 &&
         std::all_of(operands.begin(), operands.end(), is_pack_aligned);
}
inline bool has_packs(const RnnParams& p) { return has_packs(p, {p.h0, p.y}); }
inline bool has_packs(const RnnBackwardParams& p) { return has_packs(p, {p.from_h}); }

template <class Params>
bool suits_resident(const Params& p) {
  return suits_launch_for_all_steps(p) && resident_bytes(p) <= p.gpu.shared_bytes;
}
inline constexpr const char* kSuitsResident =
    "several steps of 1 to 128 sequences, no projection, w_hh within the GPU's shared memory";

}  // namespace pyops
