// What launches of many steps share: the wait of blocks for each other, which takes all of them on
// the GPU at once, and the order in which the fronts of a stack are launched.
#pragma once

#include <cuda/atomic>

#include "core/cuda.cuh"
#include "rnn/rnn_wavefront.h"

namespace pyops {

// The blocks that exchange states. A thread that comes first of its block releases what the block
// has stored; one that goes first acquires what the others have.
class RnnTeam {
 public:
  __device__ RnnTeam(void* arrivals, int64_t team, unsigned blocks)
      : arrivals_(static_cast<unsigned*>(arrivals)[team * kRnnTeamStride]), blocks_(blocks) {}

  __device__ void arrive() const {
    __syncthreads();
    if (threadIdx.x == 0) arrivals_.fetch_add(1, cuda::std::memory_order_release);
  }
  // Until each has arrived so many times.
  __device__ void wait(unsigned times) const {
    if (threadIdx.x == 0) {
      while (arrivals_.load(cuda::std::memory_order_acquire) < times * blocks_) {
      }
    }
    __syncthreads();
  }

 private:
  cuda::atomic_ref<unsigned, cuda::thread_scope_device> arrivals_;
  unsigned blocks_;
};

template <class Params>
using ResidentKernel = void (*)(RnnFront<Params>, RnnSchedule);

// Launches clusters of `cluster` blocks, none of which has arrived anywhere yet; each line of the
// grid has a layer.
template <class Params>
cudaError_t launch_resident(ResidentKernel<Params> kernel, int64_t blocks, int cluster, int threads,
                            int64_t shared_bytes, const RnnFront<Params>& front,
                            const RnnSchedule& schedule, cudaStream_t stream) {
  const auto layers = static_cast<unsigned>(front.layers);
  cudaError_t status = cudaMemsetAsync(front.layer[0].p.arrivals, 0,
                                       layers * kRnnArrivals * sizeof(unsigned), stream);
  if (status != cudaSuccess) return status;
  // What any launch may ask for: one of another thread's could come in between and ask for less.
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                front.layer[0].p.gpu.shared_bytes);
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeCooperative;
  attributes[0].val.cooperative = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks), layers);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, front, schedule);
}

// Launches what a front needs in turn, by launch(front, schedule); after an error nothing more.
template <class Params, class... Launch>
cudaError_t launch_fronts(const RnnStack<Params>& stack, const Launch&... launch) {
  const RnnSchedule schedule(stack.layer[0]);
  cudaError_t status = cudaSuccess;
  for (int64_t k = 0; k < fronts_of(stack) && status == cudaSuccess; ++k) {
    const RnnFront<Params> front = front_of(stack, k);
    const auto run = [&](const auto& of) { return (status = of(front, schedule)) == cudaSuccess; };
    static_cast<void>((run(launch) && ...));
  }
  return status;
}

// `steps` launches those of a front.
template <class Steps>
cudaError_t launch_stack(const RnnForwardStack& stack, const Steps& steps, cudaStream_t stream) {
  const auto inputs = [&](const RnnForwardFront& front, const RnnSchedule&) {
    return rnn_forward_inputs_cuda(front, stream);
  };
  return launch_fronts(stack, inputs, steps);
}

// The products with W_ih, and those of the weights, may be others than those of any GPU.
template <class Steps>
cudaError_t launch_stack(const RnnBackwardStack& stack, const Steps& steps, cudaStream_t stream,
                         cudaError_t (*inputs_of)(const RnnBackwardFront&,
                                                  cudaStream_t) = rnn_backward_inputs_cuda,
                         cudaError_t (*weights_of)(const RnnBackwardParams&,
                                                   cudaStream_t) = rnn_backward_weights_cuda) {
  const auto inputs = [&](const RnnBackwardFront& front, const RnnSchedule&) {
    return inputs_of(front, stream);
  };
  cudaError_t status = launch_fronts(stack, steps, inputs);
  for (int64_t l = 0; l < stack.layers && status == cudaSuccess; ++l) {
    RnnBackwardParams p = stack.layer[l];
    p.workspace = stack.workspace;
    status = weights_of(p, stream);
  }
  return status;
}

// The same with steps that are launched by steps.operator()<Sweep>(front, schedule).
template <DtypeSet kTypes, template <class Cell, class T> class SweepOf, class Params, class Steps,
          class... Products>
cudaError_t launch_sweeps(const RnnStack<Params>& stack, const Steps& steps, cudaStream_t stream,
                          Products... products) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_cell<kTypes>(stack.layer[0], [&]<class Cell, class T>(Cell, T) {
    const auto of_type = [&](const RnnFront<Params>& front, const RnnSchedule& schedule) {
      return steps.template operator()<SweepOf<Cell, T>>(front, schedule);
    };
    status = launch_stack(stack, of_type, stream, products...);
  });
  return status;
}

}  // namespace pyops
