# CUDA: the plugin is built where nvcc is found, no GPU needed. Device code for sm_90a, and PTX that the driver compiles for the others from sm_80 on.
find_program(REFRAIN_NVCC nvcc PATHS /usr/local/cuda/bin DOC "CUDA's compiler; none: the CUDA plugin is not built")
# The sanitizers do not know its runtime.
if(REFRAIN_NVCC AND NOT REFRAIN_SANITIZE)
  set(refrain_cuda_default ON)
else()
  set(refrain_cuda_default OFF)
endif()
option(REFRAIN_CUDA "Build the CUDA plugin" ${refrain_cuda_default})
if(NOT REFRAIN_CUDA)
  return()
endif()

set(CMAKE_CUDA_COMPILER "${REFRAIN_NVCC}")
set(CMAKE_CUDA_ARCHITECTURES OFF)
enable_language(CUDA)
find_package(CUDAToolkit 12.8 REQUIRED)
set(CMAKE_CUDA_STANDARD 20)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc has it
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(REFRAIN_CUDA_CODE "-gencode=arch=compute_80,code=compute_80 -gencode=arch=compute_90a,code=sm_90a"
  CACHE STRING "Hardware that the plugin has code for, as flags of nvcc")
string(APPEND CMAKE_CUDA_FLAGS " ${REFRAIN_CUDA_CODE} --expt-relaxed-constexpr -fmad=false -Xcompiler=-ffp-contract=off,-Wall,-Wextra")
if(REFRAIN_WERROR)
  string(APPEND CMAKE_CUDA_FLAGS " -Werror=all-warnings")
endif()
