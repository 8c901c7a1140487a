include(CheckCXXSourceCompiles)

# dqrelo_has_avxvnni(<variable>): sets whether the compiler and its assembler know AVX-VNNI: GCC 11 with binutils 2.36, Clang 12.
function(dqrelo_has_avxvnni out)
    set(CMAKE_REQUIRED_FLAGS "-mavx2 -mavxvnni")
    check_cxx_source_compiles([[
        #include <immintrin.h>
        int main() {
            __m256i sum = _mm256_setzero_si256();
            __asm__("%{vex%} vpdpbusd %0, %0, %0" : "+x"(sum));
            return _mm256_extract_epi32(sum, 0);
        }
    ]] DQRELO_HAS_AVXVNNI)
    set(${out} "${DQRELO_HAS_AVXVNNI}" PARENT_SCOPE)
endfunction()

# dqrelo_cpu_kernel_set(<variable>): sets what isa.cpp and dispatch.cpp are told: which kernels there are. Empty: the scalar ones.
function(dqrelo_cpu_kernel_set out)
    set(found "")
    if (CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
        if (CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
            set(found DQRELO_CPU_X86)
            dqrelo_has_avxvnni(has_avxvnni)
            if (has_avxvnni)
                list(APPEND found DQRELO_CPU_AVXVNNI)
            endif()
        elseif (CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
            set(found DQRELO_CPU_AARCH64)
        endif()
    endif()
    set(${out} "${found}" PARENT_SCOPE)
endfunction()

# dqrelo_cpu_isa(<target>): adds the choice of the instruction set, and what follows from it for the signs of a delta, which the kernels
# need at link time.
function(dqrelo_cpu_isa target)
    set(file ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/isa.cpp)
    dqrelo_cpu_kernel_set(kernel_set)
    target_sources(${target} PRIVATE ${file} ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/transposed-signs.cpp)
    set_source_files_properties(${file} TARGET_DIRECTORY ${target} PROPERTIES COMPILE_DEFINITIONS "${kernel_set}")
endfunction()

# dqrelo_cpu_kernels(<target>): adds the CPU kernels, which need no more of ggml at link time, each file with its instruction set's flags.
# The file flags belong to the directory that makes the target, so it is called from there for a target of a test.
function(dqrelo_cpu_kernels target)
    set(dir ${CMAKE_CURRENT_FUNCTION_LIST_DIR})
    dqrelo_cpu_kernel_set(kernel_set)
    target_sources(${target} PRIVATE ${dir}/entry.cpp ${dir}/entry-rows.cpp ${dir}/decoded-codes.cpp ${dir}/sparse.cpp ${dir}/fold.cpp ${dir}/dispatch.cpp ${dir}/prefetch.cpp ${dir}/scalar.cpp)

    set_source_files_properties(${dir}/dispatch.cpp ${dir}/prefetch.cpp TARGET_DIRECTORY ${target} PROPERTIES COMPILE_DEFINITIONS "${kernel_set}")
    if (NOT CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
        return()
    endif()

    # The scalar kernels are the baseline of every comparison, so they stay scalar.
    set_source_files_properties(${dir}/scalar.cpp TARGET_DIRECTORY ${target}
        PROPERTIES COMPILE_OPTIONS "-fno-tree-vectorize;-ffp-contract=off;-fno-math-errno")

    if (DQRELO_CPU_X86 IN_LIST kernel_set)
        target_sources(${target} PRIVATE ${dir}/avx512vnni.cpp ${dir}/avx512vnni-signs.cpp ${dir}/avx512vbmi-signs.cpp ${dir}/avx2.cpp ${dir}/avx2-signs.cpp ${dir}/avx2-sign-row.cpp)
        # GCC's own intrinsics headers warn of uninitialised values (GCC bug 105593).
        set_source_files_properties(${dir}/avx512vnni.cpp ${dir}/avx512vnni-signs.cpp TARGET_DIRECTORY ${target}
            PROPERTIES COMPILE_OPTIONS "-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512vnni;-mfma;-mf16c;-Wno-uninitialized;-Wno-maybe-uninitialized")
        set_source_files_properties(${dir}/avx512vbmi-signs.cpp TARGET_DIRECTORY ${target}
            PROPERTIES COMPILE_OPTIONS "-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512vnni;-mavx512vbmi;-Wno-uninitialized;-Wno-maybe-uninitialized")
        set_source_files_properties(${dir}/avx2.cpp ${dir}/avx2-signs.cpp ${dir}/avx2-sign-row.cpp TARGET_DIRECTORY ${target}
            PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c" COMPILE_DEFINITIONS "${kernel_set}")
        if (DQRELO_CPU_AVXVNNI IN_LIST kernel_set)
            target_sources(${target} PRIVATE ${dir}/avxvnni-sign-row.cpp)
            set_source_files_properties(${dir}/avxvnni-sign-row.cpp TARGET_DIRECTORY ${target} PROPERTIES COMPILE_OPTIONS "-mavx2;-mavxvnni")
        endif()
    elseif (DQRELO_CPU_AARCH64 IN_LIST kernel_set)
        target_sources(${target} PRIVATE ${dir}/neon.cpp)
        set_source_files_properties(${dir}/neon.cpp TARGET_DIRECTORY ${target} PROPERTIES COMPILE_OPTIONS "-march=armv8.2-a+dotprod")
    endif()
endfunction()
