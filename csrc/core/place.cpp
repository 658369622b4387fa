#include "core/place.h"

namespace pyops {

const char* Place::name() const {
  if (!gpu_) return isa_name(isa_);
  return arch_ == Arch::kSm90 ? "sm_90" : "sm_80";
}

const char* Place::rejection(Target target) const {
  if (!gpu_) {
    if (isa_ <= isa()) return nullptr;
    return isa_ > isa_detected() ? "not on this CPU" : "above the ISA cap";
  }
  const bool runs =
      arch_ == Arch::kSm90 ? target.capability == 90 : target.capability >= kLeastCapability;
  return runs ? nullptr : "not on this GPU";
}

}  // namespace pyops
