// Marks functions that CPU and CUDA code share.
#pragma once

#ifdef __CUDACC__
#define PYOPS_HOST_DEVICE __host__ __device__
#else
#define PYOPS_HOST_DEVICE
#endif
