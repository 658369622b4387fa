#include "core/parallel.h"

#include <ATen/Parallel.h>

namespace pyops {

int num_threads() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

void parallel_for_range(int64_t begin, int64_t end, int64_t grain, RangeFunction f, void* context) {
  at::parallel_for(begin, end, grain, [&](int64_t b, int64_t e) { f(context, b, e); });
}

}  // namespace pyops
