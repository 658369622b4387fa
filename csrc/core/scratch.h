// Workspace for kernels: 64-byte aligned, kept by the thread for its next call.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pyops {

void* scratch_acquire(size_t bytes);
void scratch_release(void* block);
// Fill every block with NaN patterns when it is handed out, so that tests see uninitialised reads.
void poison_scratch(bool on);

// Released by the thread that made it; the contents start undefined.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(static_cast<T*>(scratch_acquire(sizeof(T) * static_cast<size_t>(count)))) {}
  ~Scratch() { scratch_release(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

}  // namespace pyops
