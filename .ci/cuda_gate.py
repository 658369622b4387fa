"""What can be known of CUDA kernels without a GPU: `cuda_gate.py EXTENSION TORCH_LIBRARIES`.

Every kernel has sm_80 machine code and PTX, or Hopper's code alone. A specialised one, which its
name tells (`<op>_<direction>_<way>_kernel`), neither spills registers nor keeps a stack; where its
way promises an instruction, that is there. What the extension leaves undefined is defined in
PyTorch's libraries, Python's or the system's. Needs nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

SPECIALISED = re.compile(r"_(forward|backward)_\w+_kernel")
# What a kernel's name promises, and how the disassembler writes it.
PROMISES = {
    re.compile(r"_channels_kernel"): ("16-byte loads", re.compile(r"\bLDG\.E\.128")),
    re.compile(r"_mask_kernel"): ("16-byte loads", re.compile(r"\bLDG\.E\.128")),
    re.compile(r"_tensorop_kernel"): ("tensor-core products", re.compile(r"\bHMMA")),
    re.compile(r"_sm90_kernel"): ("tensor-core products by WGMMA", re.compile(r"\bHGMMA")),
}
SPILL = re.compile(r"\b(LDL|STL)\b")
NEWEST = "sm_90a"  # no PTX: no later GPU has these instructions


@dataclass
class Instance:
    """One instantiation of a kernel: its code by architecture."""

    registers: dict[str, int] = field(default_factory=dict)
    stack: dict[str, int] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    has_ptx: bool = False

    def faults(self, name: str) -> list[str]:
        """What is wrong, in words."""
        faults = []
        if set(self.code) != {NEWEST}:
            faults += [] if "sm_80" in self.code else ["no sm_80 code"]
            faults += [] if self.has_ptx else ["no PTX"]
        for architecture, code in self.code.items():
            if SPECIALISED.search(name):
                faults += [f"spills on {architecture}"] if SPILL.search(code) else []
                faults += [f"a stack on {architecture}"] if self.stack[architecture] else []
            for promising, (promise, instruction) in PROMISES.items():
                if promising.search(name) and not instruction.search(code):
                    faults.append(f"no {promise} on {architecture}")
        return faults


def output_of(*command: str | Path) -> str:
    """What a tool prints; the disassembler lies beside cuobjdump, which calls it."""
    tools = sorted(
        str(p.parent) for path in sys.path for p in Path(path).glob("nvidia/*/bin/nvdisasm")
    )
    path = os.pathsep.join([*tools, os.environ["PATH"]])
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True, env={"PATH": path}
    )
    return result.stdout


def instances(extension: Path) -> dict[str, Instance]:
    """Every kernel of the extension, by its full C++ name."""
    found: dict[str, Instance] = {}
    architecture = name = ""
    usage = output_of("cuobjdump", "-res-usage", extension)
    for line in usage.splitlines():
        if match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r" *Function (\S+):", line):
            name = match[1]
        elif match := re.match(r" *REG:(\d+) STACK:(\d+)", line):
            instance = found.setdefault(name, Instance())
            instance.registers[architecture], instance.stack[architecture] = map(
                int, match.groups()
            )
    for part in re.split(
        r"^(?=\s*arch = )", output_of("cuobjdump", "-sass", extension), flags=re.M
    ):
        match = re.match(r"\s*arch = (\w+)", part)
        for function in re.split(r"Function : ", part)[1:]:
            name, _, code = function.partition("\n")
            if match and name.strip() in found:
                found[name.strip()].code[match[1]] = code
    for name in re.findall(r"\.entry (\w+)", output_of("cuobjdump", "-ptx", extension)):
        if name in found:
            found[name].has_ptx = True
    names = list(found)
    readable = output_of("c++filt", *names).splitlines() if names else []
    return {full: found[name] for full, name in zip(readable, names, strict=True)}


def short_name(name: str) -> str:
    """Of a kernel, without namespaces and arguments; also where c++filt had to give up."""
    if not name.startswith("_Z"):
        match = re.search(r"\w+(?=<|\()", name.replace("(anonymous namespace)", ""))
        return match[0] if match else name
    for match in re.finditer(r"(?=(\d+)([a-z]\w*))", name):  # a length, and what is so long
        if match[2][: int(match[1])].endswith("_kernel"):
            return match[2][: int(match[1])]
    return name


def unresolved(extension: Path, libraries: Path) -> list[str]:
    """Symbols that nothing provides: neither PyTorch nor a versioned library of the system."""
    lines = output_of("nm", "-D", "-C", "--undefined-only", extension).splitlines()
    wanted = {line.split(None, 1)[1] for line in lines if line.split()[0] == "U"}
    wanted = {name for name in wanted if "@" not in name and not re.match(r"_?Py", name)}
    for library in sorted(libraries.glob("*.so*")):
        if not wanted:
            break
        defined = output_of("nm", "-D", "-C", "--defined-only", library).splitlines()
        wanted -= {line.split(None, 2)[-1].partition("@")[0] for line in defined}
    return sorted(wanted)


def main(extension: Path, libraries: Path) -> int:
    """Print the kernels and what is wrong with them; 1 if anything is."""
    kernels: dict[str, list[Instance]] = {}
    faults: list[str] = []
    for name, instance in instances(extension).items():
        kernels.setdefault(short_name(name), []).append(instance)
        faults += [f"{name}: {fault}" for fault in instance.faults(short_name(name))]
    table = Table("kernel", "instances", "code", "registers", "stack", title="CUDA kernels")
    for kernel, all_of_it in sorted(kernels.items()):
        architectures = sorted({a for i in all_of_it for a in i.code})
        code = [*architectures, *(["PTX"] if all(i.has_ptx for i in all_of_it) else [])]
        registers = [n for i in all_of_it for n in i.registers.values()]
        stack = max(n for i in all_of_it for n in i.stack.values())
        span = f"{min(registers)}–{max(registers)}"
        table.add_row(kernel, str(len(all_of_it)), " ".join(code), span, str(stack))
    console = Console(width=120)
    console.print(table)
    faults += [f"undefined: {name}" for name in unresolved(extension, libraries)]
    faults += [] if kernels else ["the extension has no CUDA kernel"]
    for fault in faults:
        console.print(fault, style="red", markup=False)
    print(f"{sum(map(len, kernels.values()))} kernels, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
