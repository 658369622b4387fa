// Loads that happen or not, without a branch around each: all of them can be under way at once.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/host_device.h"
#include "core/pack.h"

namespace pyops {

// The Bits at `from`, in global memory and aligned; 0 where they do not exist. Behind no product or
// wait that it stands before.
template <class Bits>
PYOPS_DEVICE uint32_t load_if(bool exist, const void* from) {
  static_assert(std::is_unsigned_v<Bits> && sizeof(Bits) <= sizeof(uint32_t));
  uint32_t word = 0;
#ifdef __CUDA_ARCH__
#define PYOPS_LOAD_IF(type)                                                                  \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n@p ld.global." type " %0, [%1];\n}" \
               : "+r"(word)                                                                  \
               : "l"(from), "r"(int{exist}))
  if constexpr (sizeof(Bits) == 1) PYOPS_LOAD_IF("u8");
  if constexpr (sizeof(Bits) == 2) PYOPS_LOAD_IF("u16");
  if constexpr (sizeof(Bits) == 4) PYOPS_LOAD_IF("u32");
#undef PYOPS_LOAD_IF
#else
  if (exist) {
    Bits bits;
    expect_aligned(from, sizeof bits);
    memcpy(&bits, from, sizeof bits);
    word = bits;
  }
#endif
  return word;
}

}  // namespace pyops
