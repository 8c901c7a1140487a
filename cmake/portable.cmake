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
