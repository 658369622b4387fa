// The runtime of an emulated GPU of capability 8.0. Threads of a block are fibers that take turns
// at barriers and at what a warp does together; blocks follow each other, but for those that wait
// for each other, each of which has a thread of the machine. Shared memory is NaN where a block
// begins. Half of a kernel's launches run blocks and threads in the opposite order: where a barrier
// is missing, the results differ.
#include <link.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "block.h"

thread_local uint3 threadIdx, blockIdx;
thread_local dim3 blockDim, gridDim;

namespace emulated {

thread_local Stacks stacks;
thread_local Block* Block::running_ = nullptr;

namespace {

constexpr int kGpus = 2, kProcessors = 32, kMostShared = 163 << 10, kSharedUnasked = 48 << 10;
constexpr size_t kMostParameters = 32764;  // from CUDA 12.1 on

// All that is a thread's own in the library of the kernels: shared memory, static and dynamic.
struct SharedMemory {
  char* begin = nullptr;
  size_t bytes = 0;

  explicit SharedMemory(const Kernel& kernel) : dynamic(kernel.shared()) {
    dl_iterate_phdr(&SharedMemory::look, this);
    if (begin == nullptr) fail("shared memory is not found");
  }

  void poison() const { std::memset(begin, kUntouched, bytes); }

  void check(size_t dynamic_bytes) const {
    constexpr size_t kBeyond = 1024;
    const char* end = dynamic + dynamic_bytes;
    for (size_t i = 0; i < kBeyond; ++i) {
      if (static_cast<unsigned char>(end[i]) != kUntouched) {
        fail("a kernel writes beyond its dynamic shared memory");
      }
    }
  }

 private:
  static int look(dl_phdr_info* module, size_t, void* sought) {
    auto& self = *static_cast<SharedMemory*>(sought);
    auto* data = static_cast<char*>(module->dlpi_tls_data);
    for (int i = 0; data != nullptr && i < module->dlpi_phnum; ++i) {
      const auto& header = module->dlpi_phdr[i];
      const bool has =
          header.p_type == PT_TLS && data <= self.dynamic && self.dynamic < data + header.p_memsz;
      if (!has) continue;
      self.begin = data;
      self.bytes = header.p_memsz;
    }
    return self.begin != nullptr;
  }

  char* dynamic;
};

thread_local bool poisoned = false;  // shared memory, and nobody has used it since

void run_blocks(const cudaLaunchConfig_t& config, const Kernel& kernel, bool backwards,
                int64_t first, int64_t end) {
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  const SharedMemory shared(kernel);
  Block block(config, kernel, backwards);
  for (int64_t i = first; i < end; ++i) {
    if (!poisoned) shared.poison();
    const auto index = static_cast<unsigned>(backwards ? end - 1 - (i - first) : i);
    block.run({index % gridDim.x, index / gridDim.x % gridDim.y, index / gridDim.x / gridDim.y});
    if (block.meets()) shared.check(config.dynamicSmemBytes);
    poisoned = !block.meets();
  }
}

// What is known of a kernel.
struct Known {
  uint64_t launches = 0;
  size_t shared_bytes = kSharedUnasked;
};
std::mutex mutex;
Known& known(const void* function) {
  static std::unordered_map<const void*, Known> all;
  return all[function];
}

bool is_cooperative(const cudaLaunchConfig_t& config) {
  return std::any_of(config.attrs, config.attrs + config.numAttrs, [](const auto& attribute) {
    return attribute.id == cudaLaunchAttributeCooperative && attribute.val.cooperative != 0;
  });
}

cudaError_t error_of(const cudaLaunchConfig_t& config, const Kernel& kernel, size_t shared_bytes) {
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  const bool fits = grid.x <= INT32_MAX && grid.y <= UINT16_MAX && grid.z <= UINT16_MAX &&
                    block.count() <= int64_t{kMostThreads};
  if (grid.count() == 0 || block.count() == 0 || !fits) return cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes > shared_bytes) return cudaErrorInvalidValue;
  if (kernel.parameter_bytes > kMostParameters) return cudaErrorInvalidValue;
  for (unsigned i = 0; i < config.numAttrs; ++i) {  // clusters came with Hopper
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension) {
      return cudaErrorInvalidConfiguration;
    }
  }
  if (is_cooperative(config) && grid.count() > kProcessors) {
    return cudaErrorCooperativeLaunchTooLarge;
  }
  if (block.count() % kWarp != 0) fail("a block is no number of warps");
  return cudaSuccess;
}

thread_local cudaError_t last_error = cudaSuccess;
cudaError_t noted(cudaError_t status) {
  if (status != cudaSuccess) last_error = status;
  return status;
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "emulated GPU: %s (block %u %u %u, thread %u)\n", what, blockIdx.x,
               blockIdx.y, blockIdx.z, threadIdx.x);
  std::abort();
}

cudaError_t launch(const cudaLaunchConfig_t& config, const Kernel& kernel) {
  bool backwards = false;
  {
    const std::lock_guard lock(mutex);
    Known& of = known(kernel.function);
    const cudaError_t status = error_of(config, kernel, of.shared_bytes);
    if (status != cudaSuccess) return noted(status);
    // The series of Thue and Morse, in which no stretch comes three times in a row: of three equal
    // calls two differ, however often they launch the kernel.
    backwards = std::popcount(of.launches++) % 2 != 0;
  }
  const int64_t blocks = config.gridDim.count();
  if (is_cooperative(config)) {
    std::vector<std::thread> processors;
    for (int64_t i = 0; i < blocks; ++i) {
      processors.emplace_back([&, i] { run_blocks(config, kernel, backwards, i, i + 1); });
    }
    for (std::thread& processor : processors) processor.join();
  } else {
    run_blocks(config, kernel, backwards, 0, blocks);
  }
  return cudaSuccess;
}

cudaError_t allow_shared(const void* function, int bytes) {
  if (bytes > kMostShared) return noted(cudaErrorInvalidValue);
  const std::lock_guard lock(mutex);
  known(function).shared_bytes = static_cast<size_t>(std::max(bytes, kSharedUnasked));
  return cudaSuccess;
}

const Slot* exchange(unsigned mask, const void* mine, size_t bytes) {
  if (mask != ~0u) fail("a warp without some of its lanes");
  return Block::running().exchange(mine, bytes);
}

int lane() { return Block::running().current() % kWarp; }

}  // namespace emulated

void __syncthreads() { emulated::Block::running().wait_for_block(); }
int __syncthreads_and(int mine) { return emulated::Block::running().vote(mine != 0); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int gpu) {
  if (gpu < 0 || gpu >= emulated::kGpus) return emulated::noted(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = emulated::kProcessors;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 8;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = emulated::kMostShared;
      break;
  }
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int gpu) {
  return gpu < 0 || gpu >= emulated::kGpus ? emulated::noted(cudaErrorInvalidDevice) : cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(emulated::last_error, cudaSuccess); }

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

const char* cudaGetErrorName(cudaError_t status) {
  return status == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration"
                                                 : "an error of the emulated GPU";
}
const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                                 : "emulated launch failed";
}
