# Finds the libraries and headers of an installed PyTorch wheel: target Torch::Torch.
#
# Torch's own CMake package fails on a CUDA wheel when no CUDA toolkit is installed. ATen's headers
# and libtorch_cpu need none, so this module links the wheel's libraries directly.
#
# Reads    REGARD_TORCH_DIR    folder of the torch package (optional)
#          Python_EXECUTABLE   the interpreter whose torch is taken otherwise
#          REGARD_CUDA         link libtorch_cuda too
# Defines  Torch::Torch, TorchWheel_FOUND, TorchWheel_VERSION, TorchWheel_DIRECTORY,
#          TorchWheel_LIBRARY_DIR, TorchWheel_HAS_CUDA

set(TorchWheel_MINIMUM 2.11)
set(TorchWheel_BELOW 2.15)

set(_torch_reason "")
set(TorchWheel_DIRECTORY "${REGARD_TORCH_DIR}")

if(NOT TorchWheel_DIRECTORY)
  if(NOT Python_EXECUTABLE AND Python3_EXECUTABLE)
    set(Python_EXECUTABLE "${Python3_EXECUTABLE}")
  elseif(NOT Python_EXECUTABLE AND EXISTS "${CMAKE_SOURCE_DIR}/.venv/bin/python")
    set(Python_EXECUTABLE "${CMAKE_SOURCE_DIR}/.venv/bin/python")
  endif()
  if(NOT Python_EXECUTABLE)
    find_package(Python 3.9 QUIET COMPONENTS Interpreter)
  endif()
  # find_spec locates the package without importing it, which would take seconds.
  if(Python_EXECUTABLE)
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -c
        "import importlib.util, os; s = importlib.util.find_spec('torch'); print(os.path.dirname(s.origin) if s and s.origin else '', end='')"
      OUTPUT_VARIABLE TorchWheel_DIRECTORY ERROR_QUIET)
  endif()
  if(NOT TorchWheel_DIRECTORY)
    set(_torch_reason "no torch package in the Python given (Python_EXECUTABLE='${Python_EXECUTABLE}')")
  endif()
endif()

set(TorchWheel_VERSION "")
if(TorchWheel_DIRECTORY)
  set(TorchWheel_LIBRARY_DIR "${TorchWheel_DIRECTORY}/lib")
  set(TorchWheel_INCLUDE_DIRS "${TorchWheel_DIRECTORY}/include"
                              "${TorchWheel_DIRECTORY}/include/torch/csrc/api/include")
  if(EXISTS "${TorchWheel_DIRECTORY}/version.py")
    file(STRINGS "${TorchWheel_DIRECTORY}/version.py" _torch_line REGEX "^__version__ *=")
    string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" TorchWheel_VERSION "${_torch_line}")
  elseif(EXISTS "${TorchWheel_DIRECTORY}/build-version")
    file(STRINGS "${TorchWheel_DIRECTORY}/build-version" _torch_line LIMIT_COUNT 1)
    string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" TorchWheel_VERSION "${_torch_line}")
  endif()
  foreach(_torch_file include/ATen/ATen.h lib/libtorch_cpu.so lib/libc10.so)
    if(NOT EXISTS "${TorchWheel_DIRECTORY}/${_torch_file}" AND NOT _torch_reason)
      set(_torch_reason "no ${_torch_file} in ${TorchWheel_DIRECTORY}")
    endif()
  endforeach()
  if(NOT _torch_reason AND NOT TorchWheel_VERSION)
    set(_torch_reason "no version in ${TorchWheel_DIRECTORY}")
  elseif(NOT _torch_reason AND
         (TorchWheel_VERSION VERSION_LESS TorchWheel_MINIMUM OR
          NOT TorchWheel_VERSION VERSION_LESS TorchWheel_BELOW))
    set(_torch_reason "torch ${TorchWheel_VERSION} in ${TorchWheel_DIRECTORY}")
  endif()
endif()

# The wheel's C++ ABI: names with the tag __cxx11 in libc10 tell the new one.
set(TorchWheel_CXX11_ABI 1)
if(NOT _torch_reason AND EXISTS "${TorchWheel_DIRECTORY}/share/cmake/Torch/TorchConfig.cmake")
  file(STRINGS "${TorchWheel_DIRECTORY}/share/cmake/Torch/TorchConfig.cmake" _torch_line
       REGEX "_GLIBCXX_USE_CXX11_ABI=[01]")
  if(_torch_line MATCHES "_GLIBCXX_USE_CXX11_ABI=([01])")
    set(TorchWheel_CXX11_ABI "${CMAKE_MATCH_1}")
  endif()
endif()

set(TorchWheel_HAS_CUDA OFF)
if(EXISTS "${TorchWheel_LIBRARY_DIR}/libtorch_cuda.so")
  set(TorchWheel_HAS_CUDA ON)
endif()
if(NOT _torch_reason AND REGARD_CUDA AND NOT TorchWheel_HAS_CUDA)
  set(_torch_reason "REGARD_CUDA=ON, but no lib/libtorch_cuda.so in ${TorchWheel_DIRECTORY}")
endif()

if(_torch_reason AND TorchWheel_FIND_REQUIRED)
  message(FATAL_ERROR "[regard] expected torch >=${TorchWheel_MINIMUM},<${TorchWheel_BELOW} in the interpreter "
    "Python_EXECUTABLE or as the folder REGARD_TORCH_DIR; found ${_torch_reason}")
endif()
include(FindPackageHandleStandardArgs)
if(_torch_reason)
  set(TorchWheel_DIRECTORY TorchWheel_DIRECTORY-NOTFOUND)
endif()
find_package_handle_standard_args(TorchWheel REQUIRED_VARS TorchWheel_DIRECTORY VERSION_VAR TorchWheel_VERSION)

if(TorchWheel_FOUND AND NOT TARGET Torch::Torch)
  add_library(Torch::c10 SHARED IMPORTED)
  set_target_properties(Torch::c10 PROPERTIES IMPORTED_LOCATION "${TorchWheel_LIBRARY_DIR}/libc10.so")
  add_library(Torch::cpu SHARED IMPORTED)
  set_target_properties(Torch::cpu PROPERTIES IMPORTED_LOCATION "${TorchWheel_LIBRARY_DIR}/libtorch_cpu.so")

  add_library(Torch::Torch INTERFACE IMPORTED)
  target_include_directories(Torch::Torch SYSTEM INTERFACE ${TorchWheel_INCLUDE_DIRS})
  target_compile_definitions(Torch::Torch INTERFACE _GLIBCXX_USE_CXX11_ABI=${TorchWheel_CXX11_ABI})
  target_compile_features(Torch::Torch INTERFACE cxx_std_20)
  target_link_libraries(Torch::Torch INTERFACE Torch::cpu Torch::c10)
  # The libraries that libtorch_cpu needs lie beside it (libgomp) or in the wheels it depends on.
  target_link_options(Torch::Torch INTERFACE "LINKER:-rpath-link,${TorchWheel_LIBRARY_DIR}")
  if(TorchWheel_HAS_CUDA)
    file(GLOB _torch_cuda_dirs "${TorchWheel_DIRECTORY}/../nvidia/*/lib")
    foreach(_torch_dir IN LISTS _torch_cuda_dirs)
      target_link_options(Torch::Torch INTERFACE "LINKER:-rpath-link,${_torch_dir}")
    endforeach()
  endif()
  if(REGARD_CUDA)
    # Nothing refers to libtorch_cuda by symbol: its kernels register themselves when it is loaded.
    target_link_options(Torch::Torch INTERFACE
      "LINKER:--no-as-needed,${TorchWheel_LIBRARY_DIR}/libtorch_cuda.so,${TorchWheel_LIBRARY_DIR}/libc10_cuda.so,--as-needed")
  endif()
endif()
