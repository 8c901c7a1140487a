// cuda_fp16.h: cuemu.h has it.
#pragma once

#include "cuemu.h"
