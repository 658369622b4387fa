// The CUDA runtime's types that the launcher of a kernel speaks. Built without CUDA there is no
// launcher, and they only stand in its declaration.
#pragma once

#ifdef PYOPS_CUDA
#include <driver_types.h>
namespace pyops {
inline constexpr bool kBuiltWithCuda = true;
}
#else
enum cudaError_t : int;  // NOLINT(readability-identifier-naming): the name is CUDA's
using cudaStream_t = struct CUstream_st*;
namespace pyops {
inline constexpr bool kBuiltWithCuda = false;
}
#endif
