// Stacked layers on ordinary units, front by front: the inputs of all its pieces as products of one
// launch, then their steps as one, a line of the grid for each layer.
#include "gemm/block_product.cuh"
#include "rnn/rnn_resident_steps.cuh"
#include "rnn/rnn_wavefront.h"

namespace pyops {
namespace {

template <class Cell, class T>
__global__ void __launch_bounds__(kBlock, kBlocksOfProducts)
    rnn_forward_front_inputs_kernel(const __grid_constant__ RnnFront front) {
  const RnnParams& p = front.layer[blockIdx.y];
  multiply_blocks(RnnInputProduct<Cell, T>{p, p.steps * p.batch});
}

template <class Sweep, int kWidth>
__global__ void __launch_bounds__(kResidentThreads, 1)
    rnn_forward_front_kernel(const __grid_constant__ RnnFront front,
                             const __grid_constant__ RnnSchedule schedule) {
  run_steps<Sweep, kWidth>(front.layer[blockIdx.y], schedule);
}

template <class Cell, class T>
cudaError_t launch_inputs(const RnnFront& front, cudaStream_t stream) {
  int64_t tiles = 0;
  for (int64_t l = 0; l < front.layers; ++l) {
    const RnnInputProduct<Cell, T> inputs{front.layer[l], front.layer[l].rows()};
    tiles = std::max(tiles, BlockProduct<RnnInputProduct<Cell, T>>::tiles(inputs));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(std::min<int64_t>(tiles, INT32_MAX)),
                        static_cast<unsigned>(front.layers));
  config.blockDim = dim3(kBlock);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, rnn_forward_front_inputs_kernel<Cell, T>, front);
}

template <class Cell, class T>
cudaError_t launch_front(const RnnFront& front, cudaStream_t stream) {
  using Sweep = RnnForwardSweep<Cell, T>;
  const RnnParams& longest = front.longest();
  const dim3 blocks(static_cast<unsigned>(resident_blocks(longest)),
                    static_cast<unsigned>(front.layers));
  return launch_resident(front.has_packs() ? rnn_forward_front_kernel<Sweep, Pack<T>::kWidth>
                                           : rnn_forward_front_kernel<Sweep, 1>,
                         blocks, 1, kResidentThreads, resident_bytes(longest), longest.arrivals,
                         stream, front, RnnSchedule(longest));
}

}  // namespace

cudaError_t rnn_forward_wavefront_cuda(const RnnStack& stack, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  dispatch_cell<kFloat32>(stack.layer[0], [&]<class Cell, class T>(Cell, T) {
    for (int64_t k = 0; k < fronts_of(stack) && status == cudaSuccess; ++k) {
      const RnnFront front = front_of(stack, k);
      status = launch_inputs<Cell, T>(front, stream);
      if (status == cudaSuccess) status = launch_front<Cell, T>(front, stream);
    }
  });
  return status;
}

}  // namespace pyops
