# The install tree: headers, libraries, program, data, and the package that find_package(Regard)
# reads. Two export sets, so that a program of the kernels alone never looks for torch.

include(CMakePackageConfigHelpers)
set(REGARD_PACKAGE_DIR "${CMAKE_INSTALL_LIBDIR}/cmake/Regard")

set_target_properties(regard_kernels PROPERTIES EXPORT_NAME kernels INSTALL_RPATH "$ORIGIN")
install(TARGETS regard_kernels EXPORT RegardKernels)
install(EXPORT RegardKernels NAMESPACE Regard:: DESTINATION "${REGARD_PACKAGE_DIR}")

set(folders base algebra kernels)
if(NOT REGARD_KERNELS_ONLY)
  set(folders base algebra kernels ops nn models scale serve insight check arena cli)
  # Inside a Python environment torch is a neighbor (site-packages/regard/lib, site-packages/torch/lib);
  # elsewhere it is where it was found. torch already loaded by the process is used in either case.
  set_target_properties(regard PROPERTIES
    INSTALL_RPATH "$ORIGIN;$ORIGIN/../../torch/lib;${TorchWheel_LIBRARY_DIR}")
  install(TARGETS regard EXPORT RegardTorch)
  install(EXPORT RegardTorch NAMESPACE Regard:: DESTINATION "${REGARD_PACKAGE_DIR}")
  if(TARGET regard-cli)
    set_target_properties(regard-cli PROPERTIES
      INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR};${TorchWheel_LIBRARY_DIR}")
    install(TARGETS regard-cli)
  endif()
endif()

foreach(folder IN LISTS folders)
  if(EXISTS "${PROJECT_SOURCE_DIR}/regard/${folder}")
    install(DIRECTORY "${PROJECT_SOURCE_DIR}/regard/${folder}"
            DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/regard" FILES_MATCHING PATTERN "*.h")
  endif()
endforeach()
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DATADIR}/regard")
if(NOT REGARD_KERNELS_ONLY AND EXISTS "${PROJECT_SOURCE_DIR}/data")
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/data" DESTINATION "${CMAKE_INSTALL_DATADIR}/regard")
endif()

configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/RegardConfig.cmake.in"
  "${CMAKE_BINARY_DIR}/RegardConfig.cmake" INSTALL_DESTINATION "${REGARD_PACKAGE_DIR}")
write_basic_package_version_file("${CMAKE_BINARY_DIR}/RegardConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_BINARY_DIR}/RegardConfig.cmake" "${CMAKE_BINARY_DIR}/RegardConfigVersion.cmake"
              "${PROJECT_SOURCE_DIR}/cmake/FindTorchWheel.cmake"
        DESTINATION "${REGARD_PACKAGE_DIR}")
