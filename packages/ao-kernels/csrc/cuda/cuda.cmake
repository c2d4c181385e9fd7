# The second extension module, ao_kernels._cuda: kernels for NVIDIA GPUs, where a CUDA toolkit is found.
#
#   AO_KERNELS_CUDA           auto (default): where there is a toolkit; on: its absence is an error; off
#   CMAKE_CUDA_ARCHITECTURES  default 90a-real, the only architecture the kernels have been run on
#
# AO_KERNELS_CUDA is also read from the environment, and CMake reads CUDAARCHS for the architectures: pip passes both on.
# The runtime is linked statically, so that the module imports anywhere; the driver is looked for at the first call.

set(AO_CUDA_OPS
  adam_step
  dequantize
  float8_dynamic_grouped_linear
  float8_dynamic_linear
  float8_grouped_linear
  float8_grouped_matmul
  float8_grouped_wgrad
  float8_linear
  float8_static_linear
  int4_grouped_linear
  int4_linear
  int8_dynamic_grouped_linear
  int8_dynamic_linear
  int8_grouped_linear
  int8_linear
  int8_static_linear
  intx_linear
  lion_step
  quantize_block_both
  quantize_grouped_both
  quantize_rowwise_both
)
set(AO_CUDA_KERNELS
  byte_linear_float8
  byte_linear_float8_blocks
  byte_linear_int8
  byte_product
  byte_product_float8
  byte_product_float8_blocks
  byte_product_int8
  cast_peaks
  cast_row_blocks
  cast_squares
  cast_vectors
  dequantize
  grouped_bytes
  grouped_bytes_float8
  grouped_bytes_int8
  grouped_large_bytes
  grouped_large_int4
  grouped_large_int4_narrow
  grouped_products
  grouped_products_fast
  grouped_products_promoted
  grouped_small_bytes
  grouped_small_int4
  grouped_weight_only
  optimizer_step_bits4
  optimizer_step_bits8
  optimizer_step_e4m3
  optimizer_step_full
  probe
  quantize_tokens
  weight_only_large
  weight_only_large_e4m3
  weight_only_large_e5m2
  weight_only_large_int4_128
  weight_only_large_int4_32
  weight_only_large_int4_64
  weight_only_large_int4_row
  weight_only_large_int8
  weight_only_mid
  weight_only_small_float8
  weight_only_small_int4
  weight_only_small_int8
  weight_only_small_intx_even
  weight_only_small_intx_odd
)
set(AO_CUDA_OLDEST 12.4)

if(NOT DEFINED AO_KERNELS_CUDA)
  set(AO_KERNELS_CUDA "$ENV{AO_KERNELS_CUDA}")
endif()
if(AO_KERNELS_CUDA STREQUAL "")
  set(AO_KERNELS_CUDA auto)
endif()
string(TOLOWER "${AO_KERNELS_CUDA}" ao_cuda)
if(NOT ao_cuda MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "AO_KERNELS_CUDA is '${AO_KERNELS_CUDA}'; it must be auto, on or off")
endif()
if(ao_cuda STREQUAL "off")
  message(STATUS "CUDA kernels: off")
  return()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND "$ENV{CUDAARCHS}" STREQUAL "")
  set(CMAKE_CUDA_ARCHITECTURES 90a-real)
endif()
include(CheckLanguage)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  enable_language(CUDA)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS AO_CUDA_OLDEST)
    set(ao_cuda_missing "${CMAKE_CUDA_COMPILER} is CUDA ${CMAKE_CUDA_COMPILER_VERSION}, older than ${AO_CUDA_OLDEST}")
  endif()
else()
  set(ao_cuda_missing "no working nvcc was found (put it on PATH, or set CUDACXX to it)")
endif()
if(DEFINED ao_cuda_missing)
  if(ao_cuda STREQUAL "on")
    message(FATAL_ERROR "AO_KERNELS_CUDA=on, but ${ao_cuda_missing}")
  endif()
  message(STATUS "CUDA kernels: none, ${ao_cuda_missing}")
  return()
endif()
find_package(CUDAToolkit REQUIRED)
message(STATUS "CUDA kernels: CUDA ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES}")

if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake before 3.26 knows it of no compiler; CUDA has it since 12.0
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
list(TRANSFORM AO_CUDA_OPS PREPEND csrc/cuda/ OUTPUT_VARIABLE ao_cuda_sources)
list(TRANSFORM ao_cuda_sources APPEND .cpp)
list(TRANSFORM AO_CUDA_KERNELS PREPEND csrc/cuda/ OUTPUT_VARIABLE ao_cuda_kernels)
list(TRANSFORM ao_cuda_kernels APPEND .cu)

pybind11_add_module(_cuda csrc/cuda/module.cpp csrc/cuda/chain.cpp csrc/cuda/device.cpp csrc/cuda/tensor_map.cpp csrc/cuda/weight_only_small.cpp
  csrc/tensor.cpp
  ${ao_cuda_sources} ${ao_cuda_kernels})
target_include_directories(_cuda PRIVATE csrc)
target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra>)
if(CMAKE_CUDA_ARCHITECTURES MATCHES "90a")
  target_compile_definitions(_cuda PRIVATE AO_CUDA_SM90A)
endif()
target_link_libraries(_cuda PRIVATE CUDA::cudart_static)
install(TARGETS _cuda LIBRARY DESTINATION ao_kernels)
