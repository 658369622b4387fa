// A build of PyTorch without CUDA knows at compile time that there is no accelerator. Loaded before
// it, for all the process, this library's answer is the one that counts.
#include <c10/core/DeviceType.h>

#include <optional>

namespace at::accelerator {

std::optional<c10::DeviceType> getAccelerator(bool) { return c10::DeviceType::CUDA; }

}  // namespace at::accelerator
