// Where a producer or a consumer stands in a ring of buffers. A buffer's barriers tell laps apart
// by one bit: a consumer waits for the lap it is in to be full, the producer for the one before it
// to be emptied, which for the first lap is so from the beginning.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace pyops {

template <int kBuffers>
struct RingPlace {
  int buffer = 0;
  uint32_t lap = 0;

  PYOPS_HOST_DEVICE uint32_t lap_before() const { return lap ^ 1; }
  PYOPS_HOST_DEVICE void advance() {
    buffer = buffer + 1 == kBuffers ? 0 : buffer + 1;
    lap ^= buffer == 0;
  }
};

}  // namespace pyops
