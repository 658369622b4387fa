// Sums that a GPU takes in parts, which are added in their order: the same sum in every run.
#pragma once

#include "core/cuda_types.h"
#include "core/dtype.h"

namespace pyops {

// Element `e` of what was summed in parts: (parts, count) of them, in the type of arithmetic. Some
// at a time: a sum of sums is off by less than one long sum.
template <class Acc>
PYOPS_HOST_DEVICE inline Acc sum_of_parts(const void* sums, int64_t parts, int64_t count,
                                          int64_t e) {
  constexpr int64_t kAtOnce = 16;
  Acc sum = 0;
  for (int64_t first = 0; first < parts; first += kAtOnce) {
    const int64_t end = first + kAtOnce < parts ? first + kAtOnce : parts;
    Acc some = 0;
    for (int64_t part = first; part < end; ++part) {
      some += static_cast<const Acc*>(sums)[part * count + e];
    }
    sum += some;
  }
  return sum;
}

// to[e] for every element, rounded once.
cudaError_t add_parts_cuda(Dtype dtype, void* to, const void* sums, int64_t parts, int64_t count,
                           cudaStream_t stream);

}  // namespace pyops
