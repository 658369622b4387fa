"""Drives CMake and Ninja; everything else about the package is in pyproject.toml."""

import os
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
try:
    import torch
    from torch.utils.cpp_extension import include_paths, library_paths
except ImportError:
    sys.exit(
        "pyops builds against the torch it will run with, and none is installed here: "
        "`pip install torch`, then `pip install --no-build-isolation .`"
    )


class CMakeBuild(build_ext):
    """Builds `pyops._C` and notes the torch it belongs to."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build into the package folder (the source tree when editable)."""
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-torch{torch.__version__}"
        package.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "PYOPS_TORCH_INCLUDE_DIRS": ";".join(include_paths()),
            "PYOPS_TORCH_LIB_DIR": library_paths()[0],
            "PYOPS_TORCH_VERSION": torch.__version__,
            "PYOPS_OUTPUT_DIR": str(package),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": _pybind11_dir(),
        }
        settings = [f"-D{name}={value}" for name, value in options.items()]
        extra = os.environ.get("CMAKE_ARGS", "").split()
        _run("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *settings, *extra)
        _run("cmake", "--build", str(build))
        _write_build_info(package)

    def copy_extensions_to_source(self) -> None:
        """Also when editable: the note stays beside the extension."""
        super().copy_extensions_to_source()
        _write_build_info(ROOT / "pyops")


def _write_build_info(package: Path) -> None:
    (package / "_build_info.py").write_text(f'TORCH_VERSION = "{torch.__version__}"\n')


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
