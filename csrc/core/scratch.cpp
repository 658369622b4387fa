#include "core/scratch.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

namespace pyops {
namespace {

constexpr size_t kAlignment = 64, kHugePage = size_t{2} << 20;
// Packed weights of the largest usual layers fit; more than this goes back to the system.
constexpr size_t kKeepPerThread = size_t{128} << 20;

std::atomic<bool> poison{false};

// A block carries its capacity in the cache line before its data.
struct Header {
  size_t capacity;
};

Header* header(void* block) {
  return reinterpret_cast<Header*>(static_cast<char*>(block) - kAlignment);
}

struct Cache {
  std::vector<void*> idle;
  size_t kept = 0;
  ~Cache() {
    for (void* block : idle) std::free(header(block));
  }
};

Cache& cache() {
  thread_local Cache instance;
  return instance;
}

// Large blocks lie in huge pages, where the system gives them on request: packed operands are
// streamed, and a 4 KiB page costs a walk through the tables as often as it comes.
void* allocate(size_t capacity) {
  const bool huge = capacity >= kHugePage;
  const size_t alignment = huge ? kHugePage : kAlignment;
  const size_t bytes = (capacity + kAlignment + alignment - 1) / alignment * alignment;
  void* raw = std::aligned_alloc(alignment, bytes);
  if (raw == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (huge) madvise(raw, bytes, MADV_HUGEPAGE);
#endif
  static_cast<Header*>(raw)->capacity = capacity;
  return static_cast<char*>(raw) + kAlignment;
}

}  // namespace

void* scratch_acquire(size_t bytes) {
  auto& [idle, kept] = cache();
  const size_t capacity = std::max((bytes + kAlignment - 1) / kAlignment, size_t{1}) * kAlignment;
  auto best = idle.end();
  for (auto it = idle.begin(); it != idle.end(); ++it) {
    const size_t have = header(*it)->capacity;
    if (have >= capacity && (best == idle.end() || have < header(*best)->capacity)) best = it;
  }
  void* block;
  if (best == idle.end()) {
    block = allocate(capacity);
  } else {
    block = *best;
    kept -= header(block)->capacity;
    idle.erase(best);
  }
  if (poison.load(std::memory_order_relaxed)) std::memset(block, 0xff, header(block)->capacity);
  return block;
}

void scratch_release(void* block) {
  auto& [idle, kept] = cache();
  const size_t capacity = header(block)->capacity;
  if (kept + capacity > kKeepPerThread) {
    std::free(header(block));
    return;
  }
  kept += capacity;
  idle.push_back(block);
}

void poison_scratch(bool on) { poison.store(on, std::memory_order_relaxed); }

}  // namespace pyops
