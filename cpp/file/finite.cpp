#include "file/finite.h"

#include "file/message.h"

#include <cinttypes>
#include <cstring>

namespace dqrelo {

namespace {

template <typename Bits>
Bits load_bits(const uint8_t * data) {
    Bits bits;
    memcpy(&bits, data, sizeof(bits));
    return bits;
}

// A float is NaN or infinite where all bits of its exponent are 1. Whether there is one at all is asked first, in the numbers' own width:
// that loop is as fast as memory.
template <typename Bits>
size_t count_exponents(const uint8_t * data, size_t n, size_t stride, Bits exponent) {
    Bits any = 0;
    for (size_t i = 0; i < n; ++i) {
        any |= (Bits) - (Bits) ((load_bits<Bits>(data + i * stride) & exponent) == exponent);
    }
    size_t n_bad = 0;
    for (size_t i = 0; i < n && any; ++i) {
        n_bad += (load_bits<Bits>(data + i * stride) & exponent) == exponent;
    }
    return n_bad;
}

constexpr uint8_t  F8_EXPONENT   = 0x7c;
constexpr uint16_t F16_EXPONENT  = 0x7c00;
constexpr uint16_t BF16_EXPONENT = 0x7f80;
constexpr uint32_t F32_EXPONENT  = 0x7f800000;
constexpr uint64_t F64_EXPONENT  = 0x7ff0000000000000;

} // namespace

size_t count_not_finite(ggml_type type, const uint8_t * data, size_t n_bytes) {
    const size_t size = ggml_type_size(type);
    const size_t n    = n_bytes / size;
    switch (type) {
        // The stride is a constant, which the compiler can use.
        case GGML_TYPE_F32: return count_exponents(data, n, sizeof(uint32_t), F32_EXPONENT);
        case GGML_TYPE_F16: return count_exponents(data, n, sizeof(uint16_t), F16_EXPONENT);
        case GGML_TYPE_BF16: return count_exponents(data, n, sizeof(uint16_t), BF16_EXPONENT);
        case GGML_TYPE_Q8_0: // Blocks of these types begin with their scale, F16.
        case GGML_TYPE_Q4_0: return count_exponents(data, n, size, F16_EXPONENT);
        default: return 0; // Signs have no exponents.
    }
}

size_t count_not_finite_f8(const uint8_t * data, size_t n_bytes) {
    return count_exponents(data, n_bytes, sizeof(uint8_t), F8_EXPONENT);
}

std::string not_finite_text(const std::string & tensor, size_t n_bad) {
    return message("tensor '%s' has %zu numbers that are NaN or infinite", printable(tensor).c_str(), n_bad);
}

bool check_values(const gguf_header & header, std::string & err) {
    for (const gguf_entry & entry : header.entries) {
        size_t n_bad = 0;
        if (entry.type == GGUF_TYPE_FLOAT32) {
            n_bad = count_exponents(entry.data, entry.n, sizeof(uint32_t), F32_EXPONENT);
        } else if (entry.type == GGUF_TYPE_FLOAT64) {
            n_bad = count_exponents(entry.data, entry.n, sizeof(uint64_t), F64_EXPONENT);
        }
        if (n_bad > 0) {
            err = message("metadata key '%s' has %zu numbers that are NaN or infinite", printable(entry.key).c_str(), n_bad);
            return false;
        }
        for (uint64_t i = 0; entry.type == GGUF_TYPE_BOOL && i < entry.n; ++i) {
            if (entry.data[i] > 1) {
                err = message("metadata key '%s' has a BOOL of %d, expected 0 or 1", printable(entry.key).c_str(), entry.data[i]);
                return false;
            }
        }
    }
    return true;
}

} // namespace dqrelo
