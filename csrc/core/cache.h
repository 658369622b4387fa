// Sizes of the machine's caches, by which loops are blocked.
#pragma once

#include <cstdint>

namespace pyops {

int64_t l2_bytes();  // of one core

}  // namespace pyops
