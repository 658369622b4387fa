// All steps of a layer in one launch on ordinary units, for any dtype: a block for each SM, whose
// units' weights its shared memory holds, and a wait of all blocks for each other behind each step.
// A step takes one trip of the states through the L2 cache (1 to 1.5 µs on an H100) and what its
// blocks read there: each all states, or four times as much going back.
#include <algorithm>

#include "rnn/rnn_resident.cuh"

namespace pyops {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;

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
  const RnnTeam team(p.arrivals, 0, gridDim.x);
  RnnSweep sweep = Sweep::start(schedule);
  const int64_t steps = Sweep::steps(p);
  for (int64_t s = 0; s < steps; ++s) {
    const auto product = Sweep::next(p, sweep);
    const int64_t line = product.depth * Resident::kColumnsUsed;
    if (s == 0) {
      for (int64_t e = threadIdx.x; e < units * line; e += kThreads) {
        kept[e] = Resident::weight(product, first, e);
      }
      __syncthreads();
    } else {
      team.wait(static_cast<unsigned>(s));
    }
    for (int64_t task = threadIdx.x / 32; task < units * groups; task += kWarps) {
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

template <class Sweep, int kWidth>
__global__ void __launch_bounds__(kThreads, 1)
    rnn_forward_resident_kernel(const __grid_constant__ RnnParams p,
                                const __grid_constant__ RnnSchedule schedule) {
  run_steps<Sweep, kWidth>(p, schedule);
}
template <class Sweep, int kWidth>
__global__ void __launch_bounds__(kThreads, 1)
    rnn_backward_resident_kernel(const __grid_constant__ RnnBackwardParams p,
                                 const __grid_constant__ RnnSchedule schedule) {
  run_steps<Sweep, kWidth>(p, schedule);
}

// By lanes that take 16 bytes at once, or one number.
template <class Params>
cudaError_t launch_steps(void (*by_packs)(Params, RnnSchedule),
                         void (*one_by_one)(Params, RnnSchedule), const Params& p,
                         cudaStream_t stream) {
  return launch_resident(has_packs(p) ? by_packs : one_by_one, resident_blocks(p), 1, kThreads,
                         resident_bytes(p), p.arrivals, stream, p, RnnSchedule(p));
}

}  // namespace

cudaError_t rnn_forward_resident_cuda(const RnnParams& p, cudaStream_t stream) {
  cudaError_t status = rnn_forward_inputs_cuda(p, stream);
  if (status != cudaSuccess) return status;
  dispatch_cell(p, [&]<class Cell, class T>(Cell, T) {
    using Sweep = RnnForwardSweep<Cell, T>;
    status = launch_steps(rnn_forward_resident_kernel<Sweep, Pack<T>::kWidth>,
                          rnn_forward_resident_kernel<Sweep, 1>, p, stream);
  });
  return status;
}

cudaError_t rnn_backward_resident_cuda(const RnnBackwardParams& p, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  dispatch_cell(p, [&]<class Cell, class T>(Cell, T) {
    using Sweep = RnnBackwardSweep<Cell, T>;
    status = launch_steps(rnn_backward_resident_kernel<Sweep, Pack<T>::kWidth>,
                          rnn_backward_resident_kernel<Sweep, 1>, p, stream);
  });
  return status == cudaSuccess ? rnn_backward_sums_cuda(p, stream) : status;
}

}  // namespace pyops
