#include "core/place.h"

#include <atomic>
#include <cstring>

namespace pyops {
namespace {

std::atomic<Arch> cap{Arch::kSm90};

}  // namespace

bool is_built([[maybe_unused]] Arch arch) {
#ifdef PYOPS_WITHOUT_HOPPER
  return arch != Arch::kSm90;
#else
  return true;
#endif
}

const char* arch_name(Arch arch) { return arch == Arch::kSm90 ? "sm_90" : "sm_80"; }

bool parse_arch(const char* name, Arch* arch) {
  for (Arch candidate : kAllArchs) {
    if (std::strcmp(name, arch_name(candidate)) == 0) {
      *arch = candidate;
      return true;
    }
  }
  return false;
}

Arch arch_cap() { return cap.load(std::memory_order_relaxed); }
void set_arch_cap(Arch value) { cap.store(value, std::memory_order_relaxed); }

const char* Place::name() const { return gpu_ ? arch_name(arch_) : isa_name(isa_); }

const char* Place::rejection(Target target) const {
  if (!gpu_) {
    if (isa_ <= isa()) return nullptr;
    return isa_ > isa_detected() ? "not on this CPU" : "above the ISA cap";
  }
  const bool runs =
      arch_ == Arch::kSm90 ? target.capability == 90 : target.capability >= kLeastCapability;
  if (!runs) return "not on this GPU";
  if (!is_built(arch_)) return "left out of this build";
  return arch_ > arch_cap() ? "above the ISA cap" : nullptr;
}

}  // namespace pyops
