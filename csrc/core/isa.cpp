#include "core/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

namespace pyops {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512_bf16", "amx"};

struct CpuidLeaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuidLeaf cpuid(unsigned leaf, unsigned subleaf) {
  CpuidLeaf r;
  if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {};
  return r;
}

uint64_t enabled_register_state() {
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

// Linux hands out the 8 KiB of tile state only to processes that ask for it.
bool request_tile_state() {
  constexpr long kArchReqXcompPerm = 0x1023, kXfeatureXtiledata = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
}

Isa detect() {
  const CpuidLeaf base = cpuid(1, 0), extended = cpuid(7, 0);
  const auto has = [](unsigned reg, int bit) { return (reg >> bit & 1u) != 0; };
  const bool osxsave = has(base.ecx, 27);
  if (!osxsave) return Isa::kScalar;
  const uint64_t state = enabled_register_state();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
  const bool tiles = (state & 0x60000) == 0x60000;

  const bool fma = has(base.ecx, 12), f16c = has(base.ecx, 29), avx2 = has(extended.ebx, 5);
  if (!(ymm && fma && f16c && avx2)) return Isa::kScalar;
#if defined(PYOPS_EMULATE)
  return Isa::kAmx;  // what these kernels would need beyond AVX2 is emulated
#endif
  const bool f = has(extended.ebx, 16), dq = has(extended.ebx, 17), cd = has(extended.ebx, 28),
             bw = has(extended.ebx, 30), vl = has(extended.ebx, 31);
  if (!(zmm && f && dq && cd && bw && vl)) return Isa::kAvx2;
  const bool amx_bf16 = has(extended.edx, 22), amx_tile = has(extended.edx, 24);
  const bool bf16 = has(cpuid(7, 1).eax, 5);
  if (!bf16) return Isa::kAvx512;
  return tiles && amx_bf16 && amx_tile && request_tile_state() ? Isa::kAmx : Isa::kAvx512Bf16;
}

std::atomic<Isa> cap{Isa::kAmx};

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool parse_isa(const char* name, Isa* isa) {
  for (Isa candidate : kAllIsas) {
    if (std::strcmp(name, isa_name(candidate)) == 0) {
      *isa = candidate;
      return true;
    }
  }
  return false;
}

Isa isa_detected() {
  static const Isa detected = detect();
  return detected;
}

Isa isa_cap() { return cap.load(std::memory_order_relaxed); }
void set_isa_cap(Isa value) { cap.store(value, std::memory_order_relaxed); }
Isa isa() { return std::min(isa_detected(), isa_cap()); }

}  // namespace pyops
