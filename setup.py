"""Drives CMake and Ninja; everything else about the package is in pyproject.toml."""

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
TOOLS = "`pip install 'setuptools>=77,<82' wheel cmake ninja pybind11`"

if int(setuptools.__version__.partition(".")[0]) < 77:  # the first to know SPDX licenses
    sys.exit(f"pyops needs setuptools 77 to build, here is {setuptools.__version__}: {TOOLS}")
from packaging.specifiers import SpecifierSet  # noqa: E402  (comes with such a setuptools)

VERSIONS = re.findall(r'"torch([<>=][^"]*)"', (ROOT / "pyproject.toml").read_text())[-1]
GET_TORCH = f"`pip install 'torch{VERSIONS}'`, then `pip install --no-build-isolation .`"
# Found and not imported: a CUDA build of PyTorch imports only where its NVIDIA libraries are.
TORCH = importlib.util.find_spec("torch")
if TORCH is None or TORCH.origin is None:
    sys.exit(f"pyops builds against the torch it will run with, and none is here: {GET_TORCH}")
TORCH_DIR = Path(TORCH.origin).parent
TORCH_BUILD = runpy.run_path(str(TORCH_DIR / "version.py"))
TORCH_VERSION: str = TORCH_BUILD["__version__"]
if not SpecifierSet(VERSIONS).contains(TORCH_VERSION, prereleases=True):
    sys.exit(f"pyops builds against torch{VERSIONS}, here is torch {TORCH_VERSION}: {GET_TORCH}")


class CMakeBuild(build_ext):
    """Builds `pyops._C` and notes the torch it belongs to."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build into the package folder (the source tree when editable)."""
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-torch{TORCH_VERSION}"
        package.mkdir(parents=True, exist_ok=True)
        include = TORCH_DIR / "include"
        options = {
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "PYOPS_TORCH_INCLUDE_DIRS": f"{include};{include / 'torch/csrc/api/include'}",
            "PYOPS_TORCH_LIB_DIR": str(TORCH_DIR / "lib"),
            "PYOPS_TORCH_VERSION": TORCH_VERSION,
            "PYOPS_OUTPUT_DIR": str(package),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": _pybind11_dir(),
            **_cuda_options(),
        }
        settings = [f"-D{name}={value}" for name, value in options.items()]
        extra = os.environ.get("CMAKE_ARGS", "").split()
        try:
            _run("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *settings, *extra)
        except SystemExit:
            (build / "CMakeCache.txt").unlink(missing_ok=True)  # it keeps the compiler refused
            raise
        _run("cmake", "--build", str(build))
        _write_build_info(package)

    def copy_extensions_to_source(self) -> None:
        """Also when editable: the note stays beside the extension."""
        super().copy_extensions_to_source()
        _write_build_info(ROOT / "pyops")


def _write_build_info(package: Path) -> None:
    (package / "_build_info.py").write_text(f'TORCH_VERSION = "{TORCH_VERSION}"\n')


def _cuda_options() -> dict[str, str]:
    """What CMake needs for the CUDA kernels; PYOPS_CUDA=1 insists on them, 0 leaves them out."""
    wanted = _switch("PYOPS_CUDA")
    nvcc, cutlass = _nvcc(), importlib.util.find_spec("cutlass_library")
    missing = _missing_for_cuda(nvcc, cutlass is not None)
    if wanted == "1" and missing:
        sys.exit(f"pyops: PYOPS_CUDA=1, but {missing}")
    if wanted == "0" or missing or nvcc is None or cutlass is None or cutlass.origin is None:
        if missing and TORCH_BUILD["cuda"]:
            print(f"pyops: building without CUDA kernels, as {missing}", file=sys.stderr)
        return {"PYOPS_CUDA": "OFF"}
    return {
        "PYOPS_CUDA": "ON",
        "PYOPS_CUDA_ARCHS": os.environ.get("PYOPS_CUDA_ARCHS", ""),
        "PYOPS_HOPPER": "ON" if _switch("PYOPS_CUDA_HOPPER") != "0" else "OFF",
        "PYOPS_CUTLASS_INCLUDE_DIR": str(Path(cutlass.origin).parent / "source" / "include"),
        "CMAKE_CUDA_COMPILER": nvcc,
    }


def _switch(name: str) -> str:
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        sys.exit(f"pyops: {name} must be 0 or 1, got {value!r}")
    return value


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    places = [f"{home}/bin"] if home else [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    return os.environ.get("CUDACXX") or shutil.which("nvcc", path=os.pathsep.join(places))


def _missing_for_cuda(nvcc: str | None, cutlass: bool) -> str:
    """Why the CUDA kernels cannot be built; empty when they can."""
    if not TORCH_BUILD["cuda"]:
        return f"torch {TORCH_VERSION} is built without CUDA"
    if nvcc is None:
        return "nvcc is not found: install the CUDA toolkit, or set CUDA_HOME"
    report = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    release = re.search(r"release (\d+)\.\d+", report.stdout)
    if release is None:
        return f"`{nvcc} --version` does not answer"
    if release[1] != TORCH_BUILD["cuda"].partition(".")[0]:
        return f"nvcc is of CUDA {release[1]}, and torch of CUDA {TORCH_BUILD['cuda']}"
    return (
        "" if cutlass else "the CUTLASS headers are missing: `pip install nvidia-cutlass==4.2.0.0`"
    )


def _pybind11_dir() -> str:
    try:
        import pybind11
    except ImportError:
        sys.exit(f"pyops needs pybind11 to build: {TOOLS}")
    return pybind11.get_cmake_dir()


def _run(*command: str) -> None:
    # The tools installed beside this interpreter come before the system's.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    try:
        subprocess.run(command, check=True, env=os.environ | {"PATH": path})
    except FileNotFoundError:
        sys.exit(f"pyops needs {command[0]} to build: {TOOLS}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"pyops: `{' '.join(command[:3])} …` failed (exit {error.returncode}), see above")


setup(ext_modules=[Extension("pyops._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
