# The pinned llama.cpp, patched, as a part of this build.
#
# It is laid into the build directory, not shared between builds: a build below the source directory then compiles the same
# relative paths on every checkout, and ccache hits there even after the patches have changed.
# After this file DQRELO_LLAMA_CPP_DIR is the tree in use, whoever gave it.
set(DQRELO_LLAMA_CPP_DIR "" CACHE PATH "a patched llama.cpp tree to use in place of the pinned one")

set(DQRELO_PATCHES ${CMAKE_CURRENT_SOURCE_DIR}/patches)
file(STRINGS ${DQRELO_PATCHES}/UPSTREAM upstream_commit REGEX "^commit = ")
string(REPLACE "commit = " "" upstream_commit "${upstream_commit}")

if (DQRELO_LLAMA_CPP_DIR)
    if (NOT EXISTS ${DQRELO_LLAMA_CPP_DIR}/ggml/include/ggml.h)
        message(FATAL_ERROR " DQRELO_LLAMA_CPP_DIR=${DQRELO_LLAMA_CPP_DIR}: is not a llama.cpp source tree")
    endif()
    file(STRINGS ${DQRELO_LLAMA_CPP_DIR}/ggml/include/ggml.h hook REGEX "GGML_OP_DQRELO")
    if (NOT hook)
        message(FATAL_ERROR " DQRELO_LLAMA_CPP_DIR=${DQRELO_LLAMA_CPP_DIR}: lacks the patches of this project (for llama.cpp ${upstream_commit}): cat ${DQRELO_PATCHES}/*.patch | patch -p1 -d ${DQRELO_LLAMA_CPP_DIR}")
    endif()
else()
    find_package(Python 3.11 COMPONENTS Interpreter)
    if (NOT Python_EXECUTABLE)
        message(FATAL_ERROR " Python 3.11 or newer is needed to fetch llama.cpp: install it, or give a patched tree with -DDQRELO_LLAMA_CPP_DIR=/path")
    endif()
    set(DQRELO_LLAMA_CPP_DIR ${CMAKE_BINARY_DIR}/llama.cpp-src)
    execute_process(
        COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/cmake/fetch_llama_cpp.py ${DQRELO_LLAMA_CPP_DIR}
        RESULT_VARIABLE status
        ERROR_VARIABLE problem
        ERROR_STRIP_TRAILING_WHITESPACE)
    if (NOT status EQUAL 0)
        message(FATAL_ERROR " ${problem}")
    endif()
    file(GLOB patches CONFIGURE_DEPENDS ${DQRELO_PATCHES}/*.patch)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${DQRELO_PATCHES}/UPSTREAM ${patches})
endif()

# Another llama.cpp in LD_LIBRARY_PATH must not replace these libraries: RPATH comes before that variable, RUNPATH, which linkers write by
# default, after it. And what is missing is said at the start, not when it is first called.
if (UNIX AND NOT APPLE)
    add_link_options(-Wl,--disable-new-dtags -Wl,-z,now)
endif()

set(BUILD_SHARED_LIBS           ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(GGML_CCACHE                 OFF CACHE BOOL "" FORCE)  # The file cmake/ccache.cmake does it.
set(GGML_CUDA                   ${DQRELO_CUDA} CACHE BOOL "" FORCE)
set(LLAMA_BUILD_COMMON          ON  CACHE BOOL "" FORCE)
set(LLAMA_BUILD_TOOLS           ON  CACHE BOOL "" FORCE)
set(LLAMA_BUILD_SERVER          ON  CACHE BOOL "" FORCE)
set(LLAMA_BUILD_APP             OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_TESTS           OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_EXAMPLES        OFF CACHE BOOL "" FORCE)
set(LLAMA_USE_PREBUILT_UI       OFF CACHE BOOL "" FORCE)  # It would be a download during the build.
set(LLAMA_OPENSSL               OFF CACHE BOOL "")

# Upstream asks git for its version; without these lines it would find whichever repository the build lies in.
set(LLAMA_BUILD_NUMBER 0)
set(LLAMA_BUILD_COMMIT ${upstream_commit}-dqrelo)
get_filename_component(above_tree ${DQRELO_LLAMA_CPP_DIR} DIRECTORY)
set(ENV{GIT_CEILING_DIRECTORIES} ${above_tree})

unset(GGML_AVAILABLE_BACKENDS CACHE) # It would keep those of the options before.
add_subdirectory(${DQRELO_LLAMA_CPP_DIR} ${CMAKE_BINARY_DIR}/llama.cpp EXCLUDE_FROM_ALL)
dqrelo_drop_variants(GGML_AVAILABLE_BACKENDS)

set(DQRELO_PROGRAMS llama-server llama-cli llama-completion llama-quantize llama-imatrix llama-perplexity)
add_custom_target(dqrelo-programs ALL DEPENDS ${DQRELO_PROGRAMS})
