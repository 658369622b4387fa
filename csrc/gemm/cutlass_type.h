// What CUTLASS and CuTe call the types of half precision.
#pragma once

#include <cutlass/bfloat16.h>
#include <cutlass/half.h>

#include "core/dtype.h"

namespace pyops {

template <class T>
struct CutlassType {
  using type = T;
};
template <>
struct CutlassType<BFloat16> {
  using type = cutlass::bfloat16_t;
};
template <>
struct CutlassType<Float16> {
  using type = cutlass::half_t;
};
template <class T>
using cutlass_t = typename CutlassType<T>::type;

}  // namespace pyops
