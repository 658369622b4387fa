// The forward of a layer of padded sequences: the inputs of all steps as one product, then one
// launch for all steps, a block for each SM, with a barrier of the whole grid behind each step.
// Blocks whose units' weights do not fit their shared memory read them again at every step.
#include <cooperative_groups.h>

#include <algorithm>

#include "core/cuda.cuh"
#include "rnn/rnn_resident.h"

namespace pyops {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;

template <class Cell, class T>
__device__ void keep_weights(const RnnParams& p, int64_t first, int64_t last, T* weights) {
  const int64_t line = p.output, count = (last - first) * Cell::kGates * line;
  for (int64_t e = threadIdx.x; e < count; e += kThreads) {
    const int64_t row = e / line;
    const T* from = RnnResident<Cell, T>::row_of(p, first + row / Cell::kGates,
                                                 static_cast<int>(row % Cell::kGates));
    weights[e] = from[e % line];
  }
}

template <class Cell, class T>
__global__ void __launch_bounds__(kThreads, 1)
    rnn_forward_resident_kernel(const __grid_constant__ RnnParams p, bool fits) {
  using Resident = RnnResident<Cell, T>;
  extern __shared__ __align__(16) char storage[];
  T* kept = reinterpret_cast<T*>(storage);
  const int64_t first = Resident::first_unit(p, blockIdx.x, gridDim.x);
  const int64_t last = Resident::first_unit(p, blockIdx.x + 1, gridDim.x);
  if (fits) keep_weights<Cell, T>(p, first, last, kept);
  __syncthreads();
  const int lane = threadIdx.x % 32;
  const int64_t line = fits ? p.output : p.hidden * p.output;
  const int64_t groups = (p.batch + Resident::kRows - 1) / Resident::kRows;
  for (int64_t s = 0; s < p.steps; ++s) {
    const RnnStep step = Resident::step_at(p, s);
    for (int64_t task = threadIdx.x / 32; task < (last - first) * groups; task += kWarps) {
      const int64_t unit = task / groups, row = task % groups * Resident::kRows;
      const T* weights =
          fits ? kept + unit * Cell::kGates * line : Resident::row_of(p, first + unit, 0);
      auto sums = Resident::accumulate(p, step, weights, line, row, lane);
      PYOPS_UNROLL for (int r = 0; r < Resident::kRows; ++r) {
        PYOPS_UNROLL for (int g = 0; g < Cell::kGates; ++g) {
          PYOPS_UNROLL for (int other = 16; other > 0; other /= 2) {
            sums.at[r][g] += __shfl_xor_sync(~0u, sums.at[r][g], other);
          }
        }
      }
      Resident::finish(p, step, first + unit, row, lane, sums);
    }
    if (s + 1 < p.steps) cooperative_groups::this_grid().sync();
  }
}

// A barrier of the grid takes all of its blocks on the GPU at once: one for each SM.
template <class Cell, class T>
cudaError_t launch_resident(const RnnParams& p, cudaStream_t stream) {
  using Resident = RnnResident<Cell, T>;
  const auto kernel = rnn_forward_resident_kernel<Cell, T>;
  int gpu = 0, processors = 0, shared = 0, blocks = 0;
  cudaError_t status = cudaGetDevice(&gpu);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, gpu);
  }
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, gpu);
  }
  if (status != cudaSuccess) return status;
  const int64_t grid = std::min<int64_t>(p.hidden, processors);
  const int64_t wanted = Resident::most_units(p, grid) * Cell::kGates * p.output * sizeof(T);
  const bool fits = wanted <= shared;
  const int bytes = fits ? static_cast<int>(wanted) : 0;
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return status;
  status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, bytes);
  if (status != cudaSuccess) return status;
  if (blocks == 0) return cudaErrorCooperativeLaunchTooLarge;
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, p, fits);
}

}  // namespace

cudaError_t rnn_forward_resident_cuda(const RnnParams& p, cudaStream_t stream) {
  cudaError_t status = rnn_inputs_cuda(p, stream);
  if (status != cudaSuccess) return status;
  dispatch_cell(
      p, [&]<class Cell, class T>(Cell, T) { status = launch_resident<Cell, T>(p, stream); });
  return status;
}

}  // namespace pyops
