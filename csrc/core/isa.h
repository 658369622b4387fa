// Instruction sets a kernel may need, in order: each one includes those before it.
#pragma once

namespace pyops {

enum class Isa : int { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAmx };

inline constexpr Isa kAllIsas[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16,
                                   Isa::kAmx};

const char* isa_name(Isa isa);
// False for an unknown name; `isa` is left alone then.
bool parse_isa(const char* name, Isa* isa);

Isa isa_detected();  // what this machine and its operating system offer
Isa isa_cap();
void set_isa_cap(Isa cap);
Isa isa();  // what kernels may use: the lower of the two above

}  // namespace pyops
