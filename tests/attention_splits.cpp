// Into how many tasks the backward of attention deals the keys of a head.
#include "attention/attention_tile_simd.h"

namespace pyops {
namespace {
int threads = 1;
}
int num_threads() { return threads; }
}  // namespace pyops

extern "C" int64_t splits(int threads, int64_t units) {
  pyops::threads = threads;
  return pyops::avx2::key_splits(units);
}
