# regard_machine, the probe of benchmarks/: peaks of the processor and of its memory, without torch.

find_package(Threads REQUIRED)
add_executable(regard_machine "${PROJECT_SOURCE_DIR}/benchmarks/machine.cpp")
target_link_libraries(regard_machine PRIVATE regard_warnings Threads::Threads)
target_compile_options(regard_machine PRIVATE -ffp-contract=fast)
