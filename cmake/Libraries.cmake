# The artifacts: regard_kernels (no torch), regard (LibTorch), the program.
# Sources are found by folder: a new file needs no edit here.

# All C++ sources under the given folders of regard/.
function(regard_glob variable)
  set(patterns "")
  foreach(folder IN LISTS ARGN)
    list(APPEND patterns "${PROJECT_SOURCE_DIR}/regard/${folder}/*.cpp")
  endforeach()
  file(GLOB_RECURSE files CONFIGURE_DEPENDS ${patterns})
  set(${variable} "${files}" PARENT_SCOPE)
endfunction()

# ---- regard_kernels: base, algebra, kernels ----------------------------------------------------
regard_glob(REGARD_KERNEL_SOURCES base algebra kernels)
add_library(regard_kernels SHARED ${REGARD_KERNEL_SOURCES})
add_library(Regard::kernels ALIAS regard_kernels)
target_include_directories(regard_kernels PUBLIC
  "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>" "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
target_compile_features(regard_kernels PUBLIC cxx_std_20)
target_link_libraries(regard_kernels PRIVATE "$<BUILD_INTERFACE:regard_warnings>" "$<BUILD_INTERFACE:regard_third_party>")
set_source_files_properties("${PROJECT_SOURCE_DIR}/regard/base/version.cpp"
  PROPERTIES COMPILE_DEFINITIONS "REGARD_VERSION=\"${PROJECT_VERSION}\"")

# One source an instruction set, chosen at run time by what the processor reports. Numbers keep
# their IEEE meaning (no -ffast-math); only errno and floating-point traps are given up.
# Compilers for other processors know no such options; without them these sources are empty.
string(REGEX MATCH "x86_64|AMD64" REGARD_X86 "${CMAKE_SYSTEM_PROCESSOR}")
include(CheckCXXCompilerFlag)
if(REGARD_X86)
  check_cxx_compiler_flag("-mavx512bf16 -mamx-tile -mamx-bf16" REGARD_COMPILES_AMX)
endif()
foreach(file IN LISTS REGARD_KERNEL_SOURCES)
  if(NOT file MATCHES "/regard/kernels/")
    continue()
  endif()
  # Under the sanitizers -O1: unoptimized tiles would take minutes a test.
  set(options -fno-math-errno -fno-trapping-math "$<$<CONFIG:Release>:-O3>" "$<$<BOOL:${REGARD_SANITIZE}>:-O1>")
  if(REGARD_X86 AND file MATCHES "_avx2\\.cpp$")
    list(APPEND options -mavx2 -mfma -mf16c)
  elseif(REGARD_X86 AND file MATCHES "_avx512\\.cpp$")
    list(APPEND options -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -mprefer-vector-width=512)
  elseif(REGARD_X86 AND REGARD_COMPILES_AMX AND file MATCHES "/amx_bf16\\.cpp$")
    list(APPEND options -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mamx-tile -mamx-bf16 -mfma
                        -mprefer-vector-width=512)
  endif()
  set_source_files_properties("${file}" PROPERTIES COMPILE_OPTIONS "${options}")
endforeach()

if(REGARD_KERNELS_ONLY)
  return()
endif()

# ---- regard: everything on LibTorch ------------------------------------------------------------
# Two precompiled headers: ATen alone for most sources; all of torch for the few that own modules
# and optimizers, which are those in arena/ and those named module.cpp or *_module.cpp.
regard_glob(REGARD_SOURCES ops nn models scale serve insight check arena cli)
list(REMOVE_ITEM REGARD_SOURCES "${PROJECT_SOURCE_DIR}/regard/cli/main.cpp")
set(REGARD_MODULE_SOURCES ${REGARD_SOURCES})
list(FILTER REGARD_MODULE_SOURCES INCLUDE REGEX "/regard/arena/|/module\\.cpp$|_module\\.cpp$")
list(FILTER REGARD_SOURCES EXCLUDE REGEX "/regard/arena/|/module\\.cpp$|_module\\.cpp$")

add_library(regard SHARED)
add_library(Regard::regard ALIAS regard)
target_link_libraries(regard PUBLIC regard_kernels Torch::Torch)

# Compiles SOURCES with HEADER precompiled, into libregard.
function(regard_add_objects name header)
  if(NOT ARGN)
    return()
  endif()
  add_library(${name} OBJECT ${ARGN})
  target_link_libraries(${name} PRIVATE regard_warnings regard_third_party regard_kernels Torch::Torch)
  target_precompile_headers(${name} PRIVATE "${header}")
  target_sources(regard PRIVATE "$<TARGET_OBJECTS:${name}>")
endfunction()

regard_add_objects(regard_aten_objects <ATen/ATen.h> ${REGARD_SOURCES})
regard_add_objects(regard_module_objects <torch/torch.h> ${REGARD_MODULE_SOURCES})
set_target_properties(regard PROPERTIES LINKER_LANGUAGE CXX)

# at::parallel_for runs on one thread, silently, in a file compiled without -fopenmp. This file
# alone is compiled with it, and nothing links an OpenMP library: the symbols resolve to the libgomp
# that torch has loaded. (Its flags differ from those of the precompiled header.)
set_source_files_properties("${PROJECT_SOURCE_DIR}/regard/ops/parallel.cpp" PROPERTIES
  COMPILE_OPTIONS "-fopenmp" SKIP_PRECOMPILE_HEADERS ON)

# ---- the program -------------------------------------------------------------------------------
if(EXISTS "${PROJECT_SOURCE_DIR}/regard/cli/main.cpp")
  add_executable(regard-cli "${PROJECT_SOURCE_DIR}/regard/cli/main.cpp")
  set_target_properties(regard-cli PROPERTIES OUTPUT_NAME regard)
  target_link_libraries(regard-cli PRIVATE regard_warnings regard_third_party regard)
endif()

# The build tree offers its data where the install tree does.
file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/share/regard")
file(CREATE_LINK "${PROJECT_SOURCE_DIR}/data" "${CMAKE_BINARY_DIR}/share/regard/data" SYMBOLIC)
