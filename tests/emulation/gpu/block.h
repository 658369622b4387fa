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
inline constexpr size_t kMostThreads = 1024;
// Not all in the same lines of a cache. What lies at the lower end shows that none was too small.
inline constexpr size_t kStack = (64 << 10) + 17 * 64, kFence = 32;
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
  void* stack = nullptr;  // where it goes on
  char* stack_begin = nullptr;
  const Meeting* waits_for = nullptr;
  unsigned since = 0;
  bool done = false;
};

// Stacks of fibers, kept by the thread of the machine. One that ends before it waits leaves its own
// to the next.
class Stacks {
 public:
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks() {
    if (begin_ != nullptr) munmap(begin_, kMostThreads * kStack);
  }

  // Its lower end.
  char* take() {
    if (begin_ == nullptr) reserve();
    char* stack = free_.back();
    free_.pop_back();
    return stack;
  }
  void give_back(char* stack) { free_.push_back(stack); }

 private:
  void reserve() {
    void* fresh = mmap(nullptr, kMostThreads * kStack, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fresh == MAP_FAILED) fail("no memory for stacks");
    begin_ = static_cast<char*>(fresh);
    for (size_t i = kMostThreads; i-- > 0;) {
      free_.push_back(begin_ + i * kStack);
      std::memset(free_.back(), kUntouched, kFence);
    }
  }

  char* begin_ = nullptr;
  std::vector<char*> free_;
};
extern thread_local Stacks stacks;

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
    for (Warp& warp : warps_) warp.meeting = {};
    std::fill(fibers_.begin(), fibers_.end(), Fiber{});
    alive_ = count();
    meets_ = false;
    while (alive_ > 0) {
      bool moves = false;
      for (int i = 0; i < count(); ++i) moves |= resume(backwards_ ? count() - 1 - i : i);
      if (!moves) fail("threads wait for others that never come");
    }
  }

  static Block& running() { return *running_; }

  void wait_for_block() { meet(block_, count()); }

  // Whether it is true of all.
  bool vote(bool mine) {
    bool& all = votes_[block_.times % 2];
    all = mine && (all || block_.come == 0);
    meet(block_, count());
    return all;
  }

  const Slot* exchange(const void* mine, size_t bytes) {
    Warp& warp = warps_[static_cast<size_t>(current_ / kWarp)];
    Slot(&slots)[kWarp] = warp.slots[warp.meeting.times % 2];
    if (bytes > 0) std::memcpy(slots[current_ % kWarp].bytes, mine, bytes);
    meet(warp.meeting, kWarp);
    return slots;
  }

  int current() const { return current_; }

  // Whether its threads waited for each other: those of others can share nothing.
  bool meets() const { return meets_; }

 private:
  int count() const { return static_cast<int>(fibers_.size()); }

  static void begin(Fiber& fiber) {
    fiber.stack_begin = stacks.take();
    auto** top = reinterpret_cast<void**>(fiber.stack_begin + kStack);
    *--top = nullptr;  // where nobody returns to
    *--top = reinterpret_cast<void*>(&run_thread);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    fiber.stack = top;
  }

  // Whether it went on.
  bool resume(int thread) {
    Fiber& fiber = fibers_[static_cast<size_t>(thread)];
    if (fiber.done || (fiber.waits_for && fiber.waits_for->times == fiber.since)) return false;
    fiber.waits_for = nullptr;
    if (fiber.stack == nullptr) begin(fiber);
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
    if (block_.come > 0) fail("a thread ends before a barrier of its block");
    Fiber& fiber = fibers_[static_cast<size_t>(current_)];
    for (size_t i = 0; i < kFence; ++i) {
      const auto byte = static_cast<unsigned char>(fiber.stack_begin[i]);
      if (byte != kUntouched) fail("a thread's stack is too small");
    }
    stacks.give_back(fiber.stack_begin);
    fiber.done = true;
    --alive_;
    emulated_switch(&fiber.stack, scheduler_);
  }

  void meet(Meeting& meeting, int all) {
    if (&meeting == &block_ && alive_ < all) fail("a thread ends before a barrier of its block");
    meets_ = true;
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
  bool backwards_, meets_ = false, votes_[2] = {};
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  Meeting block_;
  void* scheduler_ = nullptr;
  int alive_ = 0, current_ = 0;
};

}  // namespace emulated
