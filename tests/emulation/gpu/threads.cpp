// The runtime of an emulated GPU of capability 8.0. Threads of a block are fibers that take turns at
// barriers and at what a warp does together; blocks follow each other, but for those that wait for
// each other, each of which has a thread of the machine. Shared memory is NaN where a block begins.
// Every other launch of a kernel runs blocks and threads in the opposite order: where a barrier is
// missing, the results differ.
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda_runtime.h"

thread_local uint3 threadIdx, blockIdx;
thread_local dim3 blockDim, gridDim;

// Keeps what a function must keep on the stack left, and goes on where the other one stopped.
extern "C" void emulated_switch(void** left, void* other);
asm(R"(
.text
.type emulated_switch, @function
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulated_switch, .-emulated_switch
)");

namespace emulated {
namespace {

constexpr int kGpus = 2, kProcessors = 32, kMostShared = 163 << 10, kSharedUnasked = 48 << 10;
constexpr int kMostThreads = 1024, kWarp = 32;
constexpr size_t kMostParameters = 4096;
constexpr size_t kStack = 64 << 10;
constexpr unsigned char kUntouched = 0xff;  // NaN in every type

// Threads that go on once all of them have come.
struct Meeting {
  unsigned times = 0;
  int come = 0;
};

struct Warp {
  Meeting meeting;
  Slot slots[2][kWarp];  // of this meeting and the last, which somebody may still read
};

struct Fiber {
  void* stack = nullptr;
  const Meeting* waits_for = nullptr;
  unsigned since = 0;
  bool done = false;
};

// The stacks of a block's threads, kept by the thread of the machine for its next block.
class Stacks {
 public:
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks() { release(); }

  char* end_of(int thread, int threads) {
    if (threads > threads_) {
      release();
      void* fresh = mmap(nullptr, kStack * static_cast<size_t>(threads), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (fresh == MAP_FAILED) fail("no memory for stacks");
      begin_ = static_cast<char*>(fresh);
      threads_ = threads;
    }
    return begin_ + kStack * static_cast<size_t>(thread + 1);
  }

 private:
  void release() {
    if (threads_ > 0) munmap(begin_, kStack * static_cast<size_t>(threads_));
  }

  char* begin_ = nullptr;
  int threads_ = 0;
};
thread_local Stacks stacks;

class Block {
 public:
  Block(const cudaLaunchConfig_t& config, const Kernel& kernel, bool backwards)
      : kernel_(kernel),
        backwards_(backwards),
        fibers_(static_cast<size_t>(config.blockDim.count())),
        warps_(fibers_.size() / kWarp) {}

  void run(uint3 index) {
    blockIdx = index;
    running_ = this;
    block_ = {};
    std::fill(warps_.begin(), warps_.end(), Warp{});
    alive_ = count();
    for (int t = 0; t < count(); ++t) begin(t);
    while (alive_ > 0) {
      bool moves = false;
      for (int i = 0; i < count(); ++i) moves |= resume(backwards_ ? count() - 1 - i : i);
      if (!moves) fail("threads wait for others that never come");
    }
  }

  static Block& running() { return *running_; }

  void wait_for_block() { meet(block_, count()); }

  const Slot* exchange(const void* mine, size_t bytes) {
    Warp& warp = warps_[static_cast<size_t>(current_ / kWarp)];
    Slot(&slots)[kWarp] = warp.slots[warp.meeting.times % 2];
    if (bytes > 0) std::memcpy(slots[current_ % kWarp].bytes, mine, bytes);
    meet(warp.meeting, kWarp);
    return slots;
  }

  int current() const { return current_; }

 private:
  int count() const { return static_cast<int>(fibers_.size()); }

  void begin(int thread) {
    char* end = stacks.end_of(thread, count());
    std::memset(end - kStack, kUntouched, kWarp);
    auto** top = reinterpret_cast<void**>(end);
    *--top = nullptr;  // where nobody returns to
    *--top = reinterpret_cast<void*>(&run_thread);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    fibers_[static_cast<size_t>(thread)] = {top, nullptr, 0, false};
  }

  // Whether it went on.
  bool resume(int thread) {
    Fiber& fiber = fibers_[static_cast<size_t>(thread)];
    if (fiber.done || (fiber.waits_for && fiber.waits_for->times == fiber.since)) return false;
    fiber.waits_for = nullptr;
    current_ = thread;
    const auto x = static_cast<unsigned>(thread);
    threadIdx = {x % blockDim.x, x / blockDim.x % blockDim.y, x / blockDim.x / blockDim.y};
    emulated_switch(&scheduler_, fiber.stack);
    return true;
  }

  [[noreturn]] static void run_thread() {
    Block& block = *running_;
    block.kernel_.run(block.kernel_.call);
    block.leave();
    __builtin_unreachable();
  }

  void leave() {
    if (block_.come > 0) fail("a thread ends while others wait at a barrier");
    const char* stack = stacks.end_of(current_, count()) - kStack;
    for (int i = 0; i < kWarp; ++i) {
      if (static_cast<unsigned char>(stack[i]) != kUntouched) fail("a thread's stack is too small");
    }
    Fiber& fiber = fibers_[static_cast<size_t>(current_)];
    fiber.done = true;
    --alive_;
    emulated_switch(&fiber.stack, scheduler_);
  }

  void meet(Meeting& meeting, int all) {
    if (all == count() && alive_ < count()) fail("a barrier after the end of a thread");
    if (++meeting.come == all) {
      meeting.come = 0;
      ++meeting.times;
      return;
    }
    Fiber& fiber = fibers_[static_cast<size_t>(current_)];
    fiber.waits_for = &meeting;
    fiber.since = meeting.times;
    emulated_switch(&fiber.stack, scheduler_);
  }

  static thread_local Block* running_;

  const Kernel& kernel_;
  bool backwards_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  Meeting block_;
  void* scheduler_ = nullptr;
  int alive_ = 0, current_ = 0;
};
thread_local Block* Block::running_ = nullptr;

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
      const bool has = header.p_type == PT_TLS && data <= self.dynamic &&
                       self.dynamic < data + header.p_memsz;
      if (!has) continue;
      self.begin = data;
      self.bytes = header.p_memsz;
    }
    return self.begin != nullptr;
  }

  char* dynamic;
};

void run_block(Block& block, const SharedMemory& shared, const cudaLaunchConfig_t& config,
               int64_t index) {
  const dim3& grid = config.gridDim;
  const auto i = static_cast<unsigned>(index);
  shared.poison();
  block.run({i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y});
  shared.check(config.dynamicSmemBytes);
}

void run_blocks(const cudaLaunchConfig_t& config, const Kernel& kernel, bool backwards,
                int64_t first, int64_t end) {
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  const SharedMemory shared(kernel);
  Block block(config, kernel, backwards);
  for (int64_t i = first; i < end; ++i) {
    run_block(block, shared, config, backwards ? end - 1 - (i - first) : i);
  }
}

// What is known of a kernel.
struct Known {
  int64_t launches = 0;
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
                    block.count() <= kMostThreads;
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
    backwards = of.launches++ % 2 != 0;
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
