// Scalar activations of the gates; core/simd.h has those of vectors.
#pragma once

#include <cmath>

#include "core/host_device.h"

namespace pyops {

PYOPS_HOST_DEVICE inline float tanh(float x) { return ::tanhf(x); }
PYOPS_HOST_DEVICE inline double tanh(double x) { return ::tanh(x); }
PYOPS_HOST_DEVICE inline float sigmoid(float x) { return 1 / (1 + ::expf(-x)); }
PYOPS_HOST_DEVICE inline double sigmoid(double x) { return 1 / (1 + ::exp(-x)); }

}  // namespace pyops
