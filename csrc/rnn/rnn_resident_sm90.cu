// Many steps of layers back in one launch in half precision, by clusters of four blocks that share
// rows of W_hhᵀ and split their depth: each reads a quarter of the gates' gradients, and their sums
// meet through the cluster's shared memory. An LSTM with H 768, B 16: 96 blocks of 64 rows and 8
// sequences, 12 KiB of gradients to a block as in the forward, and 0.3 µs for the cluster.
#include <cooperative_groups.h>

#include "gemm/gemm_sm90.h"
#include "rnn/rnn_resident_tensorop.cuh"
#include "rnn/rnn_tensorop.h"

namespace pyops {
namespace {

constexpr int kSlices = kClusterTilings[0].slices;

template <class State>
struct ClusterTeam : TensorTeam<State> {
  template <class F>
  __device__ void each(const F& f) {
    this->alone(f);
    cooperative_groups::this_cluster().sync();
  }

  template <class Shared>
  __device__ static const Shared& shared_of(Shared& mine, int slice) {
    return *cooperative_groups::this_cluster().map_shared_rank(&mine, slice);
  }
  // Others may still read this block's sums.
  __device__ static void leave() { cooperative_groups::this_cluster().sync(); }
};

template <class Sweep, int kTiles, int kOctets>
__global__ void __launch_bounds__(RnnTiling::kThreads, 1)
    rnn_backward_cluster_tensorop_kernel(const __grid_constant__ RnnBackwardFront front,
                                         const __grid_constant__ RnnSchedule schedule) {
  run_tensor_steps<Sweep, RnnTiling{kTiles, kOctets, kSlices}, ClusterTeam>(front.layer[blockIdx.y],
                                                                            schedule);
}

template <class Sweep, RnnTiling kTiling>
struct Backward {
  static_assert(kTiling.slices == kSlices);
  static constexpr auto kFunction =
      rnn_backward_cluster_tensorop_kernel<Sweep, kTiling.tiles, kTiling.octets>;
};

GemmSm90Params weight_product(const RnnBackwardParams& p, const void* grad, const void* by,
                              int64_t width, void* weight) {
  const int64_t gates = resident_depth(p);
  return {p.dtype, gates, width, p.rows(), grad, by, weight};
}

// The products of the gates' gradients, by WGMMA; after an error nothing more.
struct Sums {
  const RnnBackwardParams& p;
  cudaStream_t stream;
  cudaError_t status = cudaSuccess;

  template <class Cell, class T>
  void operator()(const RnnInputGradient<Cell, T>& product) {
    if (product.rows == 0) return;
    const T* from_x = static_cast<const T*>(p.from_x) + product.first * product.depth;
    T* grad_x = static_cast<T*>(p.grad_x) + product.first * product.columns;
    status = gemm_nn_sm90(
        {p.dtype, product.rows, product.columns, product.depth, from_x, p.w_ih, grad_x}, stream);
  }
  template <class T>
  void operator()(const RnnWeightGradient<T>& product) {
    const auto& [grad, by, weight, bias, rows, width, depth, begin, columns] = product;
    if (weight != nullptr && status == cudaSuccess) {
      status = gemm_tn_sm90(weight_product(p, grad, by, width, weight), p.workspace, stream);
    }
    if (bias != nullptr && status == cudaSuccess) {
      status = sum_columns_cuda(gradient_of(p), grad, bias, p.workspace, stream);
    }
  }
  template <class Cell, class T>
  void operator()(const RnnProjectionGradient<Cell, T>&) {
    status = cudaErrorInvalidValue;  // no cluster takes a projection
  }
};

cudaError_t inputs_by_wgmma(const RnnBackwardFront& front, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  dispatch_cell<kHalfTypes>(front.layer[0].p, [&]<class Cell, class T>(Cell, T) {
    for (int64_t l = 0; l < front.layers && status == cudaSuccess; ++l) {
      Sums sums{front.layer[l].p, stream};
      sums(RnnInputGradient<Cell, T>::of(front.layer[l]));
      status = sums.status;
    }
  });
  return status;
}
cudaError_t weights_by_wgmma(const RnnBackwardParams& p, cudaStream_t stream) {
  Sums sums{p, stream};
  dispatch_cell<kHalfTypes>(
      p, [&]<class Cell, class T>(Cell, T) { rnn_backward_weights<Cell, T>(p, sums); });
  return sums.status;
}

// WGMMA takes what other tensor cores do.
cudaError_t launch_input_gradients(const RnnBackwardFront& front, cudaStream_t stream) {
  const bool suits = std::all_of(front.layer, front.layer + front.layers,
                                 [](const auto& piece) { return suits_tensorop(piece.p); });
  return suits ? inputs_by_wgmma(front, stream) : rnn_backward_inputs_cuda(front, stream);
}
cudaError_t launch_weight_gradients(const RnnBackwardParams& p, cudaStream_t stream) {
  return suits_tensorop(p) ? weights_by_wgmma(p, stream) : rnn_backward_weights_cuda(p, stream);
}

}  // namespace

int64_t rnn_backward_workspace_sm90(const RnnBackwardParams& p) {
  if (!suits_tensorop(p)) return 0;
  return std::max(
      {rnn_backward_workspace(p),
       gemm_tn_workspace_sm90(weight_product(p, p.from_x, p.x, p.input, p.grad_w_ih)),
       gemm_tn_workspace_sm90(weight_product(p, p.from_h, p.previous, p.output, p.grad_w_hh))});
}

cudaError_t rnn_backward_wavefront_sm90(const RnnBackwardStack& stack, cudaStream_t stream) {
  const auto steps = [&]<class Sweep>(const auto& front, const auto& schedule) {
    return launch_tensor_steps<Backward, Sweep, kClusterTilings>(front, schedule, stream);
  };
  return launch_sweeps<kHalfTypes, RnnBackwardSweep>(stack, steps, stream, launch_input_gradients,
                                                     launch_weight_gradients);
}
cudaError_t rnn_backward_resident_sm90(const RnnBackwardParams& p, cudaStream_t stream) {
  return rnn_backward_wavefront_sm90(alone(p), stream);
}

}  // namespace pyops
