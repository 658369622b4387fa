// Vec<T>: one register of the instruction set this file is compiled for. Everything lives in a
// namespace of that instruction set, or the linker could keep the AVX-512 copy of an inline
// function and an older CPU would run it.
#pragma once

#include "core/dtype.h"

#if defined(__AMX_TILE__)
#define PYOPS_ISA_NAMESPACE amx
#elif defined(__AVX512BF16__)
#define PYOPS_ISA_NAMESPACE avx512_bf16
#elif defined(__AVX512F__)
#define PYOPS_ISA_NAMESPACE avx512
#elif defined(__AVX2__)
#define PYOPS_ISA_NAMESPACE avx2
#else
#error "core/simd.h belongs in _avx2, _avx512, _avx512_bf16 and _amx files"
#endif

namespace pyops::PYOPS_ISA_NAMESPACE {

template <class T>
struct Vec;

}  // namespace pyops::PYOPS_ISA_NAMESPACE
