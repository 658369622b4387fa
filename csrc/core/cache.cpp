#include "core/cache.h"

#include <unistd.h>

#include <algorithm>

namespace pyops {
namespace {

// 256 KiB, the smallest of any processor with AVX2, where the system does not say.
int64_t read_l2_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  return std::max<int64_t>(sysconf(_SC_LEVEL2_CACHE_SIZE), 256 << 10);
#else
  return 256 << 10;
#endif
}

}  // namespace

int64_t l2_bytes() {
  static const int64_t bytes = read_l2_bytes();
  return bytes;
}

}  // namespace pyops
