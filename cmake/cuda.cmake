# The CUDA half of the build: `_cuda.cu` runs on every GPU from sm_80 on, as machine code for it and
# as PTX for all later ones; `_sm90.cu` speaks Hopper's own instructions.
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
if(NOT EXISTS ${PYOPS_CUTLASS_INCLUDE_DIR}/cutlass/cutlass.h)
  message(FATAL_ERROR "no CUTLASS headers in '${PYOPS_CUTLASS_INCLUDE_DIR}': build through setup.py, "
                      "after `pip install nvidia-cutlass==4.2.0.0`")
endif()

set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)  # the copy that PyTorch has loaded

function(add_cuda_kernels name suffix architectures)
  file(GLOB sources CONFIGURE_DEPENDS csrc/*/*_${suffix}.cu)
  if(NOT sources)
    return()
  endif()
  add_library(${name} OBJECT ${sources})
  target_include_directories(${name} PRIVATE csrc)
  # The collectives of convolutions take a header of the utilities that lie beside.
  target_include_directories(${name} SYSTEM PRIVATE ${PYOPS_CUTLASS_INCLUDE_DIR}
                             ${PYOPS_CUTLASS_INCLUDE_DIR}/../tools/util/include)
  # An assertion left in a kernel serialises its tensor-core pipeline: NDEBUG in every build.
  target_compile_definitions(${name} PRIVATE NDEBUG PYOPS_CUDA)
  target_compile_options(${name} PRIVATE --expt-relaxed-constexpr --extended-lambda
                                         -Xcompiler=-Wall -Xptxas=--warning-as-error)
  if(PYOPS_WERROR)
    target_compile_options(${name} PRIVATE -Werror=all-warnings)
  endif()
  set_target_properties(${name} PROPERTIES CUDA_ARCHITECTURES "${architectures}")
  set(CUDA_OBJECTS ${CUDA_OBJECTS} $<TARGET_OBJECTS:${name}> PARENT_SCOPE)
endfunction()

add_cuda_kernels(kernels_cuda cuda "80;${PYOPS_CUDA_ARCHS}")
if(PYOPS_HOPPER)
  add_cuda_kernels(kernels_sm90 sm90 "90a-real")
endif()
if(TARGET kernels_sm90)
  set_target_properties(kernels_sm90 PROPERTIES RULE_LAUNCH_COMPILE
                        "sh ${CMAKE_CURRENT_LIST_DIR}/refuse_serialised_wgmma.sh")
endif()

# For the glue; the kernels of the CPU are compiled as they are without CUDA.
function(add_cuda_to_glue target)
  target_compile_definitions(${target} PRIVATE PYOPS_CUDA)
  target_include_directories(${target} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(${target} PRIVATE c10_cuda torch_cuda CUDA::cudart)
  # PyTorch's libraries want NVIDIA's, which a machine that only builds may lack.
  target_link_options(${target} PRIVATE -Wl,--allow-shlib-undefined)
endfunction()
