#include "core/gpu.h"

#include <c10/core/ScalarType.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <utility>

namespace pyops {
namespace {

// Else the next call that asks, PyTorch's after its own launches, would take it for its own.
void forget_error() { static_cast<void>(cudaGetLastError()); }

// Of a GPU, both or neither.
std::pair<int, int> ask(cudaDeviceAttr first, cudaDeviceAttr second, int gpu) {
  std::pair<int, int> found;
  if (cudaDeviceGetAttribute(&found.first, first, gpu) != cudaSuccess ||
      cudaDeviceGetAttribute(&found.second, second, gpu) != cudaSuccess) {
    forget_error();
    return {};
  }
  return found;
}

// What is known of a GPU, small enough to be written at once.
struct Gpu {
  int16_t capability, processors;
  int32_t shared_bytes;
};

Gpu ask_gpu(int gpu) {
  const auto [major, minor] =
      ask(cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor, gpu);
  const auto [processors, shared_bytes] =
      ask(cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin, gpu);
  return {static_cast<int16_t>(major * 10 + minor), static_cast<int16_t>(processors), shared_bytes};
}

// Of capability 0 while it is not there.
Gpu gpu_of(at::Device device) {
  static std::array<std::atomic<Gpu>, 64> all{};
  const int gpu = device.has_index() ? device.index() : c10::cuda::current_device();
  if (static_cast<size_t>(gpu) >= all.size()) return ask_gpu(gpu);
  std::atomic<Gpu>& known = all[static_cast<size_t>(gpu)];
  if (known.load(std::memory_order_relaxed).capability == 0) known.store(ask_gpu(gpu));
  return known.load(std::memory_order_relaxed);
}

// What is worth saying beyond CUDA's own sentence.
const char* advice(cudaError_t status) {
  switch (status) {
    case cudaErrorInsufficientDriver:
    case cudaErrorUnsupportedPtxVersion:
      return "; the GPU's driver is older than the CUDA that pyops was built with";
    case cudaErrorNoKernelImageForDevice:
      return "; pyops was built for none of this GPU's architecture, see PYOPS_CUDA_ARCHS";
    default:
      return "";
  }
}

}  // namespace

Target target_of_gpu(at::Device device) { return {gpu_of(device).capability}; }

GpuLimits limits_of_gpu(at::Device device) {
  const Gpu gpu = gpu_of(device);
  return {gpu.processors, gpu.shared_bytes};
}

void launch_on_gpu(const char* op, const char* kernel, const at::Tensor& first,
                   c10::function_ref<cudaError_t(cudaStream_t)> launcher) {
  const c10::cuda::CUDAGuard guard(first.device());
  // Autograd's threads begin without a context, and the guard gives them none where they are on the
  // first GPU anyhow: the driver would then refuse to encode a tensor map for TMA.
  cudaError_t status = cudaSetDevice(first.device().index());
  if (status == cudaSuccess) status = launcher(c10::cuda::getCurrentCUDAStream());
  if (status == cudaSuccess) return;
  forget_error();
  TORCH_CHECK(false, op, ": ", kernel, " could not be launched for ", first.scalar_type(), " ",
              first.sizes(), " on ", first.device(), ": ", cudaGetErrorString(status), " (",
              cudaGetErrorName(status), ")", advice(status));
}

}  // namespace pyops
