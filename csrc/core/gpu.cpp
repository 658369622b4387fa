#include "core/gpu.h"

#include <c10/core/ScalarType.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <array>
#include <atomic>

namespace pyops {
namespace {

int ask_capability(int gpu) {
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, gpu) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, gpu) != cudaSuccess) {
    cudaGetLastError();  // else the next call that asks would take this error for its own
    return 0;
  }
  return major * 10 + minor;
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

Target target_of_gpu(at::Device device) {
  static std::array<std::atomic<int>, 64> capabilities{};  // 0: not asked yet
  const int gpu = device.has_index() ? device.index() : c10::cuda::current_device();
  if (static_cast<size_t>(gpu) >= capabilities.size()) return {ask_capability(gpu)};
  std::atomic<int>& known = capabilities[static_cast<size_t>(gpu)];
  if (known.load(std::memory_order_relaxed) == 0) known.store(ask_capability(gpu));
  return {known.load(std::memory_order_relaxed)};
}

void launch_on_gpu(const char* op, const char* kernel, const at::Tensor& first,
                   c10::function_ref<cudaError_t(cudaStream_t)> launcher) {
  const c10::cuda::CUDAGuard guard(first.device());
  const cudaError_t status = launcher(c10::cuda::getCurrentCUDAStream());
  TORCH_CHECK(status == cudaSuccess, op, ": ", kernel, " could not be launched for ",
              first.scalar_type(), " ", first.sizes(), " on ", first.device(), ": ",
              cudaGetErrorString(status), " (", cudaGetErrorName(status), ")", advice(status));
}

}  // namespace pyops
