// CUTLASS asserts that the driver has encoded its tensor maps, and without assertions goes on. What
// includes this before any other header of CUTLASS's learns of a refusal.
#pragma once

#include <cuda.h>

#include <cutlass/cuda_host_adapter.hpp>

namespace pyops {

// Of the maps that this thread has had encoded since it last cleared this, one that was refused.
inline thread_local CUresult refused_map = CUDA_SUCCESS;

inline CUresult note_refusal(CUresult result) {
  if (result != CUDA_SUCCESS) refused_map = result;
  return result;
}

}  // namespace pyops

#undef CUTLASS_CUDA_DRIVER_WRAPPER_CALL
#define CUTLASS_CUDA_DRIVER_WRAPPER_CALL(func) \
  [](auto... arguments) { return pyops::note_refusal(cutlass::call_##func(arguments...)); }
