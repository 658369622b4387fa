// PyTorch's own thread pool behind a signature without torch: torch.set_num_threads rules, and no
// second OpenMP runtime is started.
#pragma once

#include <cstdint>

namespace pyops {

int num_threads();  // threads a parallel_for started here may use

using RangeFunction = void (*)(void* context, int64_t begin, int64_t end);
void parallel_for_range(int64_t begin, int64_t end, int64_t grain, RangeFunction f, void* context);

// f(begin, end) over consecutive, static chunks of at least `grain`; runs inline when one is
// enough.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, F&& f) {
  auto call = [](void* context, int64_t b, int64_t e) { (*static_cast<F*>(context))(b, e); };
  parallel_for_range(begin, end, grain, call, const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace pyops
