// cuemu.h: CUDA C++ kernels as ordinary functions of the CPU, for tests. Include it before anything else (g++ -include) in a file that
// preprocess.py has rewritten.
//
// Every CUDA thread is a fiber of one OS thread. Blocks run in waves of CUEMU_RESIDENT (1 by default), whose fibers take turns, so that
// blocks may wait for each other.
//   modelled  threadIdx and its kin, __shared__ (static and dynamic), __syncthreads*, __syncwarp, shuffles, votes, reductions, __dp4a, half
//   and bfloat16, atomics, fences, launches checked   divergent barriers, masks that disagree, a warp operation that not all lanes of its
//   mask reach, waiting for ever, too large launches. Each aborts with the list of threads.
//             memory of a device that the host or another device's kernel touches (memory.h)
//             -fsanitize=thread finds races, also between blocks; -fsanitize=address overruns of shared and device arrays;
//             -fsanitize=alignment misaligned vector loads
//   not seen  inline PTX, tensor cores, asynchronous copies (all calls are done when they return), bank conflicts, coalescing, speed
//
// Environment: CUEMU_ORDER = fwd, rev or rand:SEED is the order in which fibers and blocks run: a result that depends on it shows a race.
//              CUEMU_RESIDENT = how many blocks run side by side. CUEMU_DEVICES = how many devices there are. CUEMU_HIDE: memory.h.
#pragma once

#define CUEMU 1

#include "types.h"
#include "sanitizers.h"
#include "fibers.h"
#include "sync.h"
#include "launch.h"
#include "intrinsics.h"
#include "half.h"
#include "runtime.h"
