// cuda_bf16.h: cuemu.h has it.
#pragma once

#include "cuemu.h"
