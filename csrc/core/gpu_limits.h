// What a kernel whose blocks wait for each other has to fit in.
#pragma once

namespace pyops {

// Nothing of a CPU.
struct GpuLimits {
  int processors = 0, shared_bytes = 0;  // shared_bytes: the most that a block can ask for
};

}  // namespace pyops
