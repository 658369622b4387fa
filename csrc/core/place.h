// Where a kernel runs: what it needs of the CPU or of the GPU, and which of them a call is for.
#pragma once

#include "core/isa.h"

namespace pyops {

// Of GPUs. Code for sm_80 comes with PTX, which every later one translates; that for sm_90 uses
// instructions that only Hopper has.
enum class Arch : int { kSm80, kSm90 };

inline constexpr Arch kAllArchs[] = {Arch::kSm80, Arch::kSm90};
// False where a build leaves Hopper's kernels out.
bool is_built(Arch arch);
inline constexpr int kLeastCapability = 80;  // of a GPU that runs any kernel of ours

const char* arch_name(Arch arch);
// False for an unknown name; `arch` is left alone then.
bool parse_arch(const char* name, Arch* arch);

// What `isa_cap` is on the CPU: a GPU uses no kernel above it.
Arch arch_cap();
void set_arch_cap(Arch cap);

// What a call runs on: the CPU, or a GPU by its compute capability (90: sm_90).
struct Target {
  int capability = 0;  // 0: the CPU

  constexpr bool is_gpu() const { return capability != 0; }
};

class Place {
 public:
  constexpr Place(Isa isa) : gpu_(false), isa_(isa), arch_(Arch::kSm80) {}
  constexpr Place(Arch arch) : gpu_(true), isa_(Isa::kScalar), arch_(arch) {}

  constexpr bool is_gpu() const { return gpu_; }
  // "avx2", "sm_80", …
  const char* name() const;
  // Why a kernel of this place cannot run on `target`, a device of its kind; null when it can.
  const char* rejection(Target target) const;

 private:
  bool gpu_;
  Isa isa_;
  Arch arch_;
};

}  // namespace pyops
