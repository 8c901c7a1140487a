// sign-kernels.h: a part of test-kernels: products with signs.
#pragma once

#include "cpu/kernels.h"

// Runs the tests of dqrelo_kernels::sign_dots, with signs as a file has them and, where the kernels take those, transposed.
void test_sign_kernels(const dqrelo_kernels * kernels);

// Runs those of the transposition itself, which no kernels are needed for.
void test_transposed_signs();
