# test-kernels and test-sha256 for AArch64 on another processor: built with a cross compiler when ctest runs, run by QEMU.
if (CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
    return() # The programs themselves run them.
endif()

find_program(DQRELO_AARCH64_CC aarch64-linux-gnu-gcc DOC "cross compiler for the tests of the NEON kernels, for C")
find_program(DQRELO_AARCH64_CXX aarch64-linux-gnu-g++ DOC "cross compiler for the tests of the NEON kernels")
find_program(DQRELO_AARCH64_QEMU NAMES qemu-aarch64 qemu-aarch64-static DOC "runs the tests of the NEON kernels")
set(libraries /usr/aarch64-linux-gnu) # Debian and Ubuntu put the C library there.

if (NOT DQRELO_AARCH64_CC OR NOT DQRELO_AARCH64_CXX OR NOT DQRELO_AARCH64_QEMU OR NOT EXISTS ${libraries}/lib/libc.so.6)
    foreach (name test-kernels-aarch64 test-sha256-aarch64)
        add_test(NAME ${name} COMMAND ${CMAKE_COMMAND} -E echo
            "skipped: the NEON kernels need aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: apt-get install g++-aarch64-linux-gnu qemu-user)")
        set_tests_properties(${name} PROPERTIES SKIP_REGULAR_EXPRESSION "^skipped: ")
    endforeach()
    return()
endif()

# dqrelo_aarch64_build(NAME OPTIONS): a test that builds the programs in NAME, before those that need the fixture NAME.
function(dqrelo_aarch64_build name options)
    add_test(NAME ${name}-build COMMAND ${CMAKE_CTEST_COMMAND}
        --build-and-test ${CMAKE_CURRENT_SOURCE_DIR}/cross ${CMAKE_CURRENT_BINARY_DIR}/${name}
        --build-generator ${CMAKE_GENERATOR} --build-makeprogram ${CMAKE_MAKE_PROGRAM} --build-noclean
        --build-options -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
        -DCMAKE_C_COMPILER=${DQRELO_AARCH64_CC} -DCMAKE_CXX_COMPILER=${DQRELO_AARCH64_CXX} "-DCMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER}"
        -DDQRELO_LLAMA_CPP_DIR=${DQRELO_LLAMA_CPP_DIR} "-DTEST_OPTIONS=${options}")
    set_tests_properties(${name}-build PROPERTIES FIXTURES_SETUP ${name})
endfunction()

# dqrelo_aarch64_test(NAME FIXTURE CPU ENVIRONMENT PROGRAM ARGUMENTS...)
function(dqrelo_aarch64_test name fixture cpu environment program)
    add_test(NAME ${name} COMMAND ${DQRELO_AARCH64_QEMU} -cpu ${cpu} -L ${libraries} ${CMAKE_CURRENT_BINARY_DIR}/${fixture}/${program} ${ARGN})
    set_tests_properties(${name} PROPERTIES FIXTURES_REQUIRED ${fixture} ENVIRONMENT "${environment}")
endfunction()

dqrelo_aarch64_build(test-kernels-aarch64 "")
dqrelo_aarch64_test(test-kernels-aarch64 test-kernels-aarch64 max "" test-kernels neon)
dqrelo_aarch64_test(test-kernels-aarch64-forced test-kernels-aarch64 max DQRELO_ISA=scalar test-kernels scalar)
dqrelo_aarch64_test(test-kernels-aarch64-no-dotprod test-kernels-aarch64 cortex-a72 "" test-kernels scalar)
dqrelo_aarch64_test(test-sha256-aarch64 test-kernels-aarch64 max "" test-sha256 armv8)

# QEMU has no ptrace, which the search for leaks needs.
dqrelo_aarch64_build(test-kernels-aarch64-sanitized "-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all")
dqrelo_aarch64_test(test-kernels-aarch64-sanitized test-kernels-aarch64-sanitized max ASAN_OPTIONS=detect_leaks=0 test-kernels neon)
