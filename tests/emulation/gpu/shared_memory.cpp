// The memory that a block's threads share.
#include <cuda_runtime.h>

namespace pyops {

thread_local char dynamic_storage[(163 << 10) + 1024];

}  // namespace pyops
