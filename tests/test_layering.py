"""The layers, executable: who may include or import whom, and that every operator is complete."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))
KERNELS = [
    p
    for p in SOURCES
    if re.search(r"_(scalar|avx2|avx512(_bf16)?|amx|cuda|sm90)\.(cpp|cu)$", p.name)
]
TORCH = re.compile(r"(torch|ATen|c10|pybind11|Python\.h)\b")
# An inline function of these, compiled for AVX-512, could be the copy the linker keeps for all.
FORBIDDEN_STD = {"vector", "string", "map", "unordered_map", "memory", "functional", "iostream"}
# Each package of pyops: what of pyops it may import, besides itself.
PYTHON_LAYERS = {
    "ops": {"_C", "_after_import", "_insight", "_overrides"},
    "functional": {"ops"},
    "nn": {"functional", "_C", "_after_import", "_insight", "_overrides"},
    "models": set(),
    "numerics": set(),
}


def includes(path):
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), re.M)


def closure(path, seen=None):
    """Every header a file sees, ours followed to the end."""
    seen = set() if seen is None else seen
    for name in set(includes(path)) - seen:
        seen.add(name)
        if (CSRC / name).exists():
            closure(CSRC / name, seen)
    return seen


def imports(path):
    """The modules of pyops a file imports, as `pyops.…` names."""
    package = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: -node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            yield from ([f"pyops.{a.name}" for a in node.names] if module == "pyops" else [module])


def folder(path):
    return path.relative_to(CSRC).parts[0]


OPERATORS = sorted({folder(p) for p in SOURCES if p.parent != CSRC} - {"core", "gemm"})
by_path = pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CSRC)))


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.name)
def test_kernels_see_no_torch_and_no_containers(path):
    seen = closure(path)
    assert [name for name in seen if TORCH.match(name)] == []
    assert seen & FORBIDDEN_STD == set()
    ours = [CSRC / name for name in seen if (CSRC / name).exists()]
    assert [p for p in [path, *ours] if re.search(r"\bthrow\b", p.read_text())] == []


def test_kernel_objects_share_no_code():
    """A weak symbol outside the namespace of its ISA is one that the linker may keep for all."""
    objects = [
        p for p in ROOT.glob("build/**/*.o") if re.search(r"_(avx2|avx512(_bf16)?|amx)\.", p.name)
    ]
    if not objects or shutil.which("nm") is None:
        pytest.skip("not built from these sources")
    names = subprocess.run(["nm", "-C", *objects], capture_output=True, text=True, check=True)
    weak = re.findall(r" W (.*)", names.stdout)
    # nm leaves the longest names mangled: lengths, where there would be colons.
    own = re.compile(r"pyops(::|\d+)(avx2|avx512(_bf16)?|amx)(::|\d)")
    assert [name for name in weak if not own.search(name)] == []


@by_path
def test_folders_include_only_what_lies_below(path):
    # What conv2d pools has max_pool2d's gradient.
    below = {"core": set(), "gemm": {"core"}, "conv2d": {"core", "gemm", "max_pool2d"}}
    allowed = below.get(folder(path), {"core", "gemm"}) | {folder(path)}
    ours = [name for name in includes(path) if (CSRC / name).exists()]
    if path.parent != CSRC:
        assert {name.split("/")[0] for name in ours} <= allowed


@pytest.mark.parametrize("package", PYTHON_LAYERS)
def test_python_packages_import_only_what_lies_below(package):
    base = ROOT / "pyops" / package
    files = sorted(base.rglob("*.py")) or [base.with_suffix(".py")]
    allowed = PYTHON_LAYERS[package] | {package}
    for path in (p for p in files if p.exists()):
        ours = {m.split(".")[1] for m in imports(path) if m.startswith("pyops.")}
        assert ours <= allowed, path


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_has_a_test_and_a_benchmark(operator):
    assert (ROOT / "tests" / f"test_{operator}.py").exists()
    assert (ROOT / "bench" / f"bench_{operator}.py").exists()


@pytest.mark.parametrize("tree", ["csrc", "pyops", "bench", "tests"])
def test_no_file_outgrows_a_reader(tree):
    code = (".h", ".cpp", ".cu", ".cuh", ".py", ".pyi")
    files = [p for p in sorted((ROOT / tree).rglob("*")) if p.suffix in code]
    assert files
    assert [p for p in files if len(p.read_text().splitlines()) > 400] == []
