// Comes before every kernel. Functions in PTX are read as the CPU has them; all that follows
// believes that a GPU runs it.
#pragma once

#include <cuda_runtime.h>

#define __CUDACC__

#include "attention/attention_softmax.h"
#include "core/dtype.h"
#include "core/host_device.h"
#include "gemm/warp_step.h"

#define __CUDA_ARCH__ 800
