#include "dqrelo-dq1.h"

void dqrelo_dq1_to_float(const void * x, float * y, int64_t k) {
    const uint8_t * bits = x;
    for (int64_t j = 0; j < k; j++) {
        y[j] = (bits[j / 8] >> (j % 8)) & 1 ? 1.0f : -1.0f;
    }
}
