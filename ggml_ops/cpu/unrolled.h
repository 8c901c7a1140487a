// unrolled.h: UNROLLED, for the loops over a tile of accumulators.
#pragma once

// Put before such a loop, it makes the compiler unroll the loop before it decides what lies in registers.
#define UNROLLED _Pragma("GCC unroll 8")
