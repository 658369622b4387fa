// Many steps of layers in one launch in half precision, on the tensor cores of any GPU from sm_80
// on; registers hold the recurrent weights, and shared memory what they cannot.
//
// Counted for an LSTM with H 768, B 16 on an H100: 96 blocks of 16 units and 8 sequences have 64
// rows of weights, 96 KiB in registers. A step's states are 12 KiB to a block, 1.2 MB for all of
// them through the L2 cache (0.25 µs), its products 192 to a block (0.2 µs), the wait and the trip
// through the cache 1 to 1.5 µs: latency is the limit. Going back each block reads the gradients of
// all gates, 48 KiB, 4.7 MB for all (0.9 µs), which clusters share out (rnn_resident_sm90.cu).
#include "rnn/rnn_resident_tensorop.cuh"

namespace pyops {
namespace {

// A block is a cluster of its own.
template <class State>
struct LoneTeam : TensorTeam<State> {
  template <class Shared>
  __device__ static const Shared& shared_of(const Shared& mine, int) {
    return mine;
  }
  __device__ static void leave() {}
};

template <class Sweep, int kTiles, int kOctets>
__global__ void __launch_bounds__(RnnTiling::kThreads, 1)
    rnn_forward_resident_tensorop_kernel(const __grid_constant__ RnnForwardFront front,
                                         const __grid_constant__ RnnSchedule schedule) {
  run_tensor_steps<Sweep, RnnTiling{kTiles, kOctets, 1}, LoneTeam>(front.layer[blockIdx.y],
                                                                   schedule);
}
template <class Sweep, int kTiles, int kOctets>
__global__ void __launch_bounds__(RnnTiling::kThreads, 1)
    rnn_backward_resident_tensorop_kernel(const __grid_constant__ RnnBackwardFront front,
                                          const __grid_constant__ RnnSchedule schedule) {
  run_tensor_steps<Sweep, RnnTiling{kTiles, kOctets, 1}, LoneTeam>(front.layer[blockIdx.y],
                                                                   schedule);
}

template <class Sweep, RnnTiling kTiling>
struct Forward {
  static constexpr auto kFunction =
      rnn_forward_resident_tensorop_kernel<Sweep, kTiling.tiles, kTiling.octets>;
};
template <class Sweep, RnnTiling kTiling>
struct Backward {
  static constexpr auto kFunction =
      rnn_backward_resident_tensorop_kernel<Sweep, kTiling.tiles, kTiling.octets>;
};

}  // namespace

cudaError_t rnn_forward_wavefront_tensorop_cuda(const RnnForwardStack& stack, cudaStream_t stream) {
  const auto steps = [&]<class Sweep>(const auto& front, const auto& schedule) {
    return launch_tensor_steps<Forward, Sweep, kForwardTilings>(front, schedule, stream);
  };
  return launch_sweeps<kHalfTypes, RnnForwardSweep>(stack, steps, stream);
}
cudaError_t rnn_forward_resident_tensorop_cuda(const RnnParams& p, cudaStream_t stream) {
  return rnn_forward_wavefront_tensorop_cuda(alone(p), stream);
}

cudaError_t rnn_backward_wavefront_tensorop_cuda(const RnnBackwardStack& stack,
                                                 cudaStream_t stream) {
  const auto steps = [&]<class Sweep>(const auto& front, const auto& schedule) {
    return launch_tensor_steps<Backward, Sweep, kBackwardTilings>(front, schedule, stream);
  };
  return launch_sweeps<kHalfTypes, RnnBackwardSweep>(stack, steps, stream);
}
cudaError_t rnn_backward_resident_tensorop_cuda(const RnnBackwardParams& p, cudaStream_t stream) {
  return rnn_backward_wavefront_tensorop_cuda(alone(p), stream);
}

}  // namespace pyops
