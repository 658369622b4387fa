// What glue needs from CUDA: which GPU a tensor is on, and launching there. Built with CUDA alone.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/FunctionRef.h>

#include "core/cuda_types.h"
#include "core/gpu_limits.h"
#include "core/place.h"

namespace pyops {

// Capability 0, a CPU's, for a GPU that is not there: only fake tensors are on it.
Target target_of_gpu(at::Device device);
// Nothing of such a GPU.
GpuLimits limits_of_gpu(at::Device device);

// Calls `launcher` for the GPU that `first` is on, with PyTorch's current stream of it. An error it
// returns becomes an exception that names the operator, the kernel, the tensor and the reason.
void launch_on_gpu(const char* op, const char* kernel, const at::Tensor& first,
                   c10::function_ref<cudaError_t(cudaStream_t)> launcher);

}  // namespace pyops
