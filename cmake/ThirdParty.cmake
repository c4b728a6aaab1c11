# Header-only fmt, nlohmann-json and CLI11 as one target, Regard's third-party headers.
#
# Torch's include folder holds an fmt of its own. A folder of links, searched before torch's, makes
# the system's (or REGARD_THIRD_PARTY's) headers win in every target alike.

set(REGARD_LINKED_HEADERS "${CMAKE_BINARY_DIR}/third_party")
file(MAKE_DIRECTORY "${REGARD_LINKED_HEADERS}")

# Finds HEADER, whose package is PACKAGE on Debian, and links its FOLDER.
function(regard_link_headers folder header package)
  find_path(REGARD_${folder}_INCLUDE "${folder}/${header}"
            HINTS "${REGARD_THIRD_PARTY}" "${REGARD_THIRD_PARTY}/include" "${REGARD_THIRD_PARTY}/${folder}/include")
  if(NOT REGARD_${folder}_INCLUDE)
    message(FATAL_ERROR "[regard] expected the header <${folder}/${header}> (Debian and Ubuntu: ${package}) "
                        "in the system's include folders or under REGARD_THIRD_PARTY; found neither")
  endif()
  file(CREATE_LINK "${REGARD_${folder}_INCLUDE}/${folder}" "${REGARD_LINKED_HEADERS}/${folder}" SYMBOLIC)
endfunction()

regard_link_headers(fmt format.h libfmt-dev)
regard_link_headers(nlohmann json.hpp nlohmann-json3-dev)
regard_link_headers(CLI CLI.hpp libcli11-dev)

add_library(regard_third_party INTERFACE)
target_include_directories(regard_third_party SYSTEM BEFORE INTERFACE "${REGARD_LINKED_HEADERS}")
target_compile_definitions(regard_third_party INTERFACE FMT_HEADER_ONLY)
