// The steps of a launch on ordinary units.
#pragma once

#include "rnn/rnn_resident.cuh"

namespace pyops {

inline constexpr int kResidentThreads = 512;

// Each line of the grid is a layer.
template <class Sweep, int kWidth>
__device__ void run_steps(const typename Sweep::Params& p, const RnnSchedule& schedule) {
  using Resident = RnnResident<Sweep, kWidth>;
  using T = typename Resident::T;
  extern __shared__ __align__(16) char storage[];
  T* kept = reinterpret_cast<T*>(storage);
  const int64_t first = Resident::first_unit(p.hidden, blockIdx.x, gridDim.x);
  const int64_t units = Resident::first_unit(p.hidden, blockIdx.x + 1, gridDim.x) - first;
  const int64_t groups = (p.batch + Resident::kRows - 1) / Resident::kRows;
  const int lane = threadIdx.x % 32;
  const RnnTeam team(p.arrivals, blockIdx.y, gridDim.x);
  RnnSweep sweep = Sweep::start(p, schedule);
  const int64_t steps = Sweep::steps(p);
  for (int64_t s = 0; s < steps; ++s) {
    const auto product = Sweep::next(p, sweep);
    const int64_t line = product.depth * Resident::kColumnsUsed;
    if (s == 0) {
      for (int64_t e = threadIdx.x; e < units * line; e += kResidentThreads) {
        kept[e] = Resident::weight(product, first, e);
      }
      __syncthreads();
    } else {
      team.wait(static_cast<unsigned>(s));
    }
    for (int64_t task = threadIdx.x / 32; task < units * groups; task += kResidentThreads / 32) {
      const int64_t unit = task / groups, row = task % groups * Resident::kRows;
      typename Resident::Product::Given given{};
      if (Resident::finishes(product, row, lane)) given = product.given(row + lane, first + unit);
      auto sums = Resident::accumulate(product, kept + unit * line, row, lane);
      PYOPS_UNROLL for (int r = 0; r < Resident::kRows; ++r) {
        PYOPS_UNROLL for (int c = 0; c < Resident::kColumnsUsed; ++c) {
          PYOPS_UNROLL for (int other = 16; other > 0; other /= 2) {
            sums.at[r][c] += __shfl_xor_sync(~0u, sums.at[r][c], other);
          }
        }
      }
      Resident::finish(product, first + unit, row, lane, sums, given);
    }
    if (s + 1 < steps) team.arrive();
  }
}

}  // namespace pyops
