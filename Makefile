# `make demo` and `make test` are all a newcomer needs; each creates what it lacks.
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A CUDA build of PyTorch for `make cuda`, without the NVIDIA libraries that running it takes.
CUDA_TORCH := 2.12.1
CUDA_VENV ?= .venv_cuda
CUDA_BIN := $(CUDA_VENV)/bin
CUDA_STAMP := $(CUDA_VENV)/.installed

# The Python of `make gpu`, with a CUDA build of PyTorch that runs.
PYTHON ?= python3

.PHONY: build demo test emulate emulate-gpu check bench cuda gpu lint tidy format clean
build: $(STAMP)
	$(BIN)/python setup.py --quiet build_ext --inplace

$(STAMP): pyproject.toml constraints.txt setup.py
	test -x $(BIN)/pip || python3 -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt setuptools wheel cmake ninja pybind11 numpy torch
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e ".[tools,test,lint]"
	touch $@

demo: build
	$(BIN)/pyops demo

test: build
	$(BIN)/pytest -n auto

# The kernels of AVX-512, its bfloat16 and AMX where the processor has AVX2 alone: in the module of a
# second tree their intrinsics are emulated. `make emulate TESTS=tests/test_rnn.py` for other tests of
# them.
TESTS ?= $(addprefix tests/test_,emulation.py emulation_tiles.py attention.py conv2d.py \
  conv2d_exact.py conv2d_winograd.py linear_relu.py max_pool2d.py rnn.py vectors.py)
emulate: build
	$(BIN)/python setup.py --quiet build_py --build-lib build/emulated
	$(BIN)/cmake --build $$(ls -td build/cpython-*-torch* | head -n 1) --target emulated
	PYTHONPATH=$(CURDIR)/build/emulated $(BIN)/pytest -n auto -k "avx512 or amx or emulat" $(TESTS)

# The CUDA half of the glue and the general kernels where there is no GPU: in the module of a third
# tree g++ compiles them, and the threads of a grid are its program's. CUTLASS's kernels are replaced by
# loops and those of Hopper are absent. Of files with many tests every 17th, or `THIN=1` for all.
THIN ?= 17
GPU_TESTS ?= $(addprefix tests/test_,accelerate.py attention.py attention_dropout.py \
  attention_operators.py attention_paths.py check.py conv2d.py conv2d_exact.py cuda.py \
  cuda_attention.py cuda_kernels.py cuda_rnn.py emulated_gpu.py linear_relu.py max_pool2d.py \
  models.py nn.py opinfo.py rnn.py trainer.py)
emulate-gpu: build
	$(BIN)/python setup.py --quiet build_py --build-lib build/emulated_gpu
	$(BIN)/cmake --build $$(ls -td build/cpython-*-torch* | head -n 1) --target emulated_gpu
	PYTHONPATH=$(CURDIR)/build/emulated_gpu:$(CURDIR)/tests/emulation/gpu \
	  $(BIN)/pytest -n auto -p thinned --thin $(THIN) $(GPU_TESTS)

check: build
	$(BIN)/pyops check

bench: build
	$(BIN)/pyops bench

# The CUDA kernels, compiled, linked and checked where nvcc is; no GPU is needed.
cuda: $(CUDA_STAMP)
	PYOPS_CUDA=1 $(CUDA_BIN)/python setup.py --quiet build_ext --build-lib build/cuda
	$(CUDA_BIN)/python .ci/cuda_gate.py build/cuda/pyops/_C*.so \
	  $(CUDA_VENV)/lib/python3*/site-packages/torch/lib

# On a machine with a GPU: build, test, sanitize and benchmark; `make gpu ARGS=--help`.
gpu:
	$(PYTHON) .ci/gpu.py $(ARGS)

$(CUDA_STAMP): constraints.txt Makefile
	test -x $(CUDA_BIN)/pip || python3 -m venv $(CUDA_VENV)
	$(CUDA_BIN)/pip install -q -c constraints.txt setuptools wheel cmake ninja pybind11 rich
	$(CUDA_BIN)/pip install -q -c constraints.txt --no-deps \
	  nvidia-cutlass nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	$(CUDA_BIN)/pip install -q --no-deps torch==$(CUDA_TORCH)
	touch $@

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell csrc pyops tests bench docs *.md
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*')

# Every kernel is one template instantiated per instruction set: the widest one covers it, but for
# products of tiles where there is no matrix unit.
tidy: build
	git ls-files 'csrc/core/*.cpp' 'csrc/*_scalar.cpp' 'csrc/*_amx.cpp' csrc/conv2d/*_avx512_bf16.cpp \
	  | grep -v -e core/torch.cpp -e core/autograd.cpp -e core/parallel.cpp -e core/gpu.cpp \
	  | xargs -P 2 -n 2 $(BIN)/clang-tidy --quiet -p $$(ls -td build/cpython-*-torch* | head -n 1) \
	      --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-ignored-gch \
	      --extra-arg=-Wno-ignored-optimization-argument

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*')

clean:
	rm -rf build $(VENV) $(CUDA_VENV) pyops/_C*.so pyops/_build_info.py
