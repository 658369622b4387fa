// What glue takes from PyTorch's library for CUDA, which a build without it lacks.
#pragma once

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "cuda_runtime.h"

namespace c10::cuda {

using CUDAGuard = DeviceGuard;

inline DeviceIndex current_device() {
  return impl::VirtualGuardImpl(DeviceType::CUDA).getDevice().index();
}

inline cudaStream_t getCurrentCUDAStream() { return nullptr; }

}  // namespace c10::cuda
