// All steps of a layer in one launch on ordinary units, for any dtype: a block for each SM, whose
// units' weights its shared memory holds, and a wait of all blocks for each other behind each step.
// A step takes one trip of the states through the L2 cache (1 to 1.5 µs on an H100) and what its
// blocks read there: each all states, or four times as much going back.
#include "rnn/rnn_resident_steps.cuh"

namespace pyops {
namespace {

template <class Sweep, int kWidth>
__global__ void __launch_bounds__(kResidentThreads, 1)
    rnn_forward_resident_kernel(const __grid_constant__ RnnParams p,
                                const __grid_constant__ RnnSchedule schedule) {
  run_steps<Sweep, kWidth>(p, schedule);
}
template <class Sweep, int kWidth>
__global__ void __launch_bounds__(kResidentThreads, 1)
    rnn_backward_resident_kernel(const __grid_constant__ RnnBackwardParams p,
                                 const __grid_constant__ RnnSchedule schedule) {
  run_steps<Sweep, kWidth>(p, schedule);
}

// By lanes that take 16 bytes at once, or one number.
template <class Params>
cudaError_t launch_steps(void (*by_packs)(Params, RnnSchedule),
                         void (*one_by_one)(Params, RnnSchedule), const Params& p,
                         cudaStream_t stream) {
  return launch_resident(has_packs(p) ? by_packs : one_by_one,
                         dim3(static_cast<unsigned>(resident_blocks(p))), 1, kResidentThreads,
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
