// Many steps of layers in one launch on ordinary units, for any dtype: of each layer a block for
// each SM of its share, whose units' weights its shared memory holds, and a wait of the layer's
// blocks for each other behind each step. A step takes one trip of the states through the L2 cache
// (1 to 1.5 µs on an H100) and what its blocks read there: each all states, or four times as much
// going back.
#include "rnn/rnn_resident.cuh"

namespace pyops {
namespace {

// As many as leave each the registers that its sums take.
template <class Sweep>
constexpr int kThreads = sizeof(typename Sweep::Type) == 8 ? 256 : 512;
template <class Sweep>
constexpr int kPack = Pack<typename Sweep::Type>::kWidth;

template <class Sweep, int kWidth>
__device__ void run_steps(const RnnPiece<typename Sweep::Params>& piece,
                          const RnnSchedule& schedule) {
  using Resident = RnnResident<Sweep, kWidth>;
  using T = typename Resident::T;
  T* kept = dynamic_shared<T>();
  const auto& p = piece.p;
  // Layers whose weights are on chip are counted by 32 bits.
  const auto first = static_cast<int>(Resident::first_unit(p.hidden, blockIdx.x, gridDim.x));
  const auto end = static_cast<int>(Resident::first_unit(p.hidden, blockIdx.x + 1, gridDim.x));
  const int units = end - first;
  const int groups = (schedule.batch + Resident::kRows - 1) / Resident::kRows;
  const int lane = threadIdx.x % 32;
  const RnnTeam team(p.arrivals, 0, gridDim.x);
  RnnSweep sweep = Sweep::start(piece, schedule);
  const int32_t steps = Sweep::steps(piece);
  for (int32_t s = 0; s < steps; ++s) {
    const auto product = Sweep::next(p, sweep);
    const int line = static_cast<int>(product.depth) * Resident::kColumnsUsed;
    if (s == 0) {
      for (int e = threadIdx.x; e < units * line; e += kThreads<Sweep>) {
        kept[e] = Resident::weight(product, first, e);
      }
      __syncthreads();
    } else {
      team.wait(static_cast<unsigned>(s));
    }
    for (int task = threadIdx.x / 32; task < units * groups; task += kThreads<Sweep> / 32) {
      const int unit = task / groups, row = task % groups * Resident::kRows;
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
__global__ void __launch_bounds__(kThreads<Sweep>, 1)
    rnn_forward_resident_kernel(const __grid_constant__ RnnForwardFront front,
                                const __grid_constant__ RnnSchedule schedule) {
  run_steps<Sweep, kWidth>(front.layer[blockIdx.y], schedule);
}
template <class Sweep, int kWidth>
__global__ void __launch_bounds__(kThreads<Sweep>, 1)
    rnn_backward_resident_kernel(const __grid_constant__ RnnBackwardFront front,
                                 const __grid_constant__ RnnSchedule schedule) {
  run_steps<Sweep, kWidth>(front.layer[blockIdx.y], schedule);
}

// By lanes that take 16 bytes at once, where all layers let them, or one number.
template <class Sweep, class Params>
cudaError_t launch_steps(ResidentKernel<Params> by_packs, ResidentKernel<Params> one_by_one,
                         const RnnFront<Params>& front, const RnnSchedule& schedule,
                         cudaStream_t stream) {
  const Params& p = front.layer[0].p;
  const bool packs = std::all_of(front.layer, front.layer + front.layers,
                                 [](const auto& piece) { return has_packs(piece.p); });
  return launch_resident(packs ? by_packs : one_by_one, resident_blocks(p), 1, kThreads<Sweep>,
                         resident_bytes(p), front, schedule, stream);
}

}  // namespace

cudaError_t rnn_forward_wavefront_cuda(const RnnForwardStack& stack, cudaStream_t stream) {
  const auto steps = [&]<class Sweep>(const auto& front, const auto& schedule) {
    return launch_steps<Sweep>(rnn_forward_resident_kernel<Sweep, kPack<Sweep>>,
                               rnn_forward_resident_kernel<Sweep, 1>, front, schedule, stream);
  };
  return launch_sweeps<kAnyFloat, RnnForwardSweep>(stack, steps, stream);
}
cudaError_t rnn_forward_resident_cuda(const RnnParams& p, cudaStream_t stream) {
  return rnn_forward_wavefront_cuda(alone(p), stream);
}

cudaError_t rnn_backward_wavefront_cuda(const RnnBackwardStack& stack, cudaStream_t stream) {
  const auto steps = [&]<class Sweep>(const auto& front, const auto& schedule) {
    return launch_steps<Sweep>(rnn_backward_resident_kernel<Sweep, kPack<Sweep>>,
                               rnn_backward_resident_kernel<Sweep, 1>, front, schedule, stream);
  };
  return launch_sweeps<kAnyFloat, RnnBackwardSweep>(stack, steps, stream);
}
cudaError_t rnn_backward_resident_cuda(const RnnBackwardParams& p, cudaStream_t stream) {
  return rnn_backward_wavefront_cuda(alone(p), stream);
}

}  // namespace pyops
