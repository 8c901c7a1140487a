// cuda_runtime.h: cuemu.h has it.
#pragma once

#include "cuemu.h"
