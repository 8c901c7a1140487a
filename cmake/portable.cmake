# A build that runs on other machines: ggml's CPU backend once for each class of processors, of which a program loads the best when it starts.
# Without it everything is compiled for this machine's processor.
option(DQRELO_PORTABLE "build for any processor of this architecture" OFF)

set(GGML_BACKEND_DL       ${DQRELO_PORTABLE} CACHE BOOL "" FORCE)
set(GGML_CPU_ALL_VARIANTS ${DQRELO_PORTABLE} CACHE BOOL "" FORCE)
if (DQRELO_PORTABLE)
    set(GGML_NATIVE OFF)
    if (DQRELO_BUILD_TESTS OR DQRELO_BUILD_BENCH)
        message(FATAL_ERROR " DQRELO_PORTABLE=ON: the C++ tests and benchmarks link the CPU backend, which is loaded here: build them without it")
    endif()
endif()

# dqrelo_drop_variants(<variable>): takes the CPU backends that this compiler cannot build out of the list of backends. GCC before 14 knows no
# SME. Their targets stay, since ggml's depends on them, but are empty.
function(dqrelo_drop_variants backends)
    set(kept ${${backends}})
    foreach (target ${kept})
        if (NOT target MATCHES "^ggml-cpu-armv9")
            continue()
        endif()
        include(CheckCXXCompilerFlag)
        check_cxx_compiler_flag(-march=armv9.2-a+sme DQRELO_HAS_SME)
        if (NOT DQRELO_HAS_SME)
            message(STATUS "${target} is left out: the compiler knows no SME (GCC 14)")
            file(WRITE ${CMAKE_BINARY_DIR}/empty.c "")
            set_target_properties(${target} PROPERTIES SOURCES ${CMAKE_BINARY_DIR}/empty.c COMPILE_OPTIONS "" LINK_LIBRARIES "")
            list(REMOVE_ITEM kept ${target})
        endif()
    endforeach()
    set(${backends} ${kept} PARENT_SCOPE)
endfunction()
