// AVX-512 with bfloat16, as avx512.h.
#pragma once

#include "avx512.h"

#define __AVX512BF16__ 1
