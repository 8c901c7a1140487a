# Compile through ccache where it is present, so that a clean checkout at any path builds in minutes.
find_program(DQRELO_CCACHE ccache)
if (DQRELO_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    set(launcher ${CMAKE_COMMAND} -E env
        CCACHE_BASEDIR=${CMAKE_CURRENT_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${DQRELO_CCACHE})
    set(CMAKE_C_COMPILER_LAUNCHER   ${launcher})
    set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${launcher})
endif()
