// A block of an emulated GPU: its threads are fibers, each with a stack, of which one runs until it
// waits at a barrier or for its warp.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "cuda_runtime.h"

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

inline constexpr int kWarp = 32;
inline constexpr size_t kStack = 64 << 10;
inline constexpr unsigned char kUntouched = 0xff;  // NaN in every type

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
inline thread_local Stacks stacks;

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

  inline static thread_local Block* running_ = nullptr;

  const Kernel& kernel_;
  bool backwards_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  Meeting block_;
  void* scheduler_ = nullptr;
  int alive_ = 0, current_ = 0;
};

}  // namespace emulated
