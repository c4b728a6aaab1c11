# test_kernels (no torch), test_ops and test_nn, GoogleTest executables found by folder.
#
# Each runs as one process under CTest: loading torch for every single test would cost more than
# the tests. Tests whose name contains "Slow" run under the label slow.

find_package(Threads REQUIRED)
set(REGARD_GTEST_SOURCE "${REGARD_THIRD_PARTY}/googletest")
if(REGARD_THIRD_PARTY AND EXISTS "${REGARD_GTEST_SOURCE}/src/gtest-all.cc")
  add_library(regard_gtest STATIC "${REGARD_GTEST_SOURCE}/src/gtest-all.cc"
                                  "${REGARD_GTEST_SOURCE}/src/gtest_main.cc")
  target_include_directories(regard_gtest SYSTEM PUBLIC "${REGARD_GTEST_SOURCE}/include"
                             PRIVATE "${REGARD_GTEST_SOURCE}")
  target_link_libraries(regard_gtest PUBLIC Threads::Threads)
else()
  find_package(GTest REQUIRED)
  add_library(regard_gtest INTERFACE)
  target_link_libraries(regard_gtest INTERFACE GTest::gtest GTest::gtest_main)
endif()

# Builds the executable NAME from the sources under tests/ in the folders given.
function(regard_add_tests name)
  cmake_parse_arguments(ARG "" "" "FOLDERS;LINK;PRECOMPILE" ${ARGN})
  set(patterns "")
  foreach(folder IN LISTS ARG_FOLDERS)
    list(APPEND patterns "${PROJECT_SOURCE_DIR}/tests/${folder}/*.cpp")
  endforeach()
  file(GLOB_RECURSE files CONFIGURE_DEPENDS ${patterns})
  if(NOT files)
    return()
  endif()
  add_executable(${name} ${files})
  target_link_libraries(${name} PRIVATE regard_warnings regard_third_party ${ARG_LINK} regard_gtest)
  target_compile_definitions(${name} PRIVATE "REGARD_SOURCE_DIR=\"${PROJECT_SOURCE_DIR}\"")
  if(ARG_PRECOMPILE)
    target_precompile_headers(${name} PRIVATE ${ARG_PRECOMPILE})
  endif()
  set(reports "${CMAKE_BINARY_DIR}/reports")
  add_test(NAME ${name}
           COMMAND ${name} "--gtest_filter=-*Slow*" "--gtest_output=xml:${reports}/${name}.xml")
  add_test(NAME ${name}_slow
           COMMAND ${name} "--gtest_filter=*Slow*" "--gtest_output=xml:${reports}/${name}_slow.xml")
  set_tests_properties(${name}_slow PROPERTIES LABELS slow)
  set_tests_properties(${name} ${name}_slow PROPERTIES RUN_SERIAL ON
    ENVIRONMENT "ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0;UBSAN_OPTIONS=print_stacktrace=1")
endfunction()

regard_add_tests(test_kernels FOLDERS base algebra kernels LINK regard_kernels)
if(NOT REGARD_KERNELS_ONLY)
  regard_add_tests(test_ops FOLDERS ops LINK regard PRECOMPILE <ATen/ATen.h> <gtest/gtest.h>)
  regard_add_tests(test_nn FOLDERS nn LINK regard)

  # Plug-ins that the Python tests load: one shared module a source, <build>/tests/NAME.so.
  file(GLOB REGARD_TEST_PLUGINS CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tests/plugins/*.cpp")
  foreach(file IN LISTS REGARD_TEST_PLUGINS)
    get_filename_component(name "${file}" NAME_WE)
    add_library(${name} MODULE "${file}")
    target_link_libraries(${name} PRIVATE regard_warnings regard)
    target_precompile_headers(${name} PRIVATE <ATen/ATen.h>)
    set_target_properties(${name} PROPERTIES PREFIX "" LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
  endforeach()
endif()
