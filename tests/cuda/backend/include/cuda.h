// cuda.h: the driver, of which nothing is used. What ggml-cuda is compiled for is said here, for its files alone: the op's own take the
// paths without inline PTX.
#pragma once

#include "cuemu.h"

#define __CUDA_ARCH__ 610
#define __CUDA_ARCH_LIST__ 610
static_assert(__CUDA_ARCH__ == CUEMU_ARCH, "the device is what the code is compiled for");
