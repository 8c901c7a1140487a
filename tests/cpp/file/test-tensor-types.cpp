// test-tensor-types.cpp: the types that a tensor of a GGUF file may have. They are upstream's alone: a number that this project took for
// itself would give a wrong meaning to the files of a later llama.cpp, which takes the next free one.
#include "file/gguf-header.h"
#include "support/check.h"
#include "support/gguf-builder.h"

using namespace dqrelo;
using namespace testing;

// One past the last type in the ggml.h of patches/UPSTREAM, without the patches. Another llama.cpp may have another one.
static constexpr uint32_t UPSTREAM_TYPES = 43;

// Returns a model with one tensor of whatever type. The number is written into the file's bytes, since the enum may not hold it.
static std::string file_with_type(uint32_t type) {
    gguf_builder m;
    m.set("general.architecture", std::string("llama"));
    m.set("general.alignment", uint32_t(ALIGNMENT));
    m.tensors.push_back({ "output.weight", GGML_TYPE_F64, { 256 }, std::string(256 * 8, '\0') });
    std::string  bytes = m.file();
    const size_t at    = bytes.find("output.weight") + strlen("output.weight") + sizeof(uint32_t) + sizeof(uint64_t);
    return bytes.replace(at, sizeof(type), bytes_of(type));
}

static bool ggml_reads(const std::string & bytes) {
    gguf_context * ctx = gguf_init_from_buffer(bytes.data(), bytes.size(), { true, nullptr });
    gguf_free(ctx);
    return ctx != nullptr;
}

static bool we_read(const std::string & bytes, std::string & err) {
    gguf_header header;
    return parse_gguf_header((const uint8_t *) bytes.data(), bytes.size(), header, err);
}

static void test_types_of_upstream() {
    check::begin("types/upstream's own are read, but for those that it has removed");
    for (uint32_t type = 0; type < UPSTREAM_TYPES; ++type) {
        const std::string bytes   = file_with_type(type);
        const bool        removed = ggml_blck_size((ggml_type) type) == 0;
        std::string       err;
        CHECK(ggml_reads(bytes) == !removed);
        CHECK(we_read(bytes, err) == !removed);
    }
}

static void test_other_types() {
    check::begin("types/every other number is refused");
    for (uint32_t type : { UPSTREAM_TYPES, UPSTREAM_TYPES + 1, 63u, 64u, 142u, 255u, 256u, 0x7fffffffu, 0x80000000u, 0xffffffffu }) {
        const std::string bytes = file_with_type(type);
        std::string       err;
        CHECK(!ggml_reads(bytes));
        CHECK(!we_read(bytes, err));
        CHECK(err == "tensor 'output.weight' has the unknown type id " + std::to_string(type) + ". Made by a newer or a forked llama.cpp?");
    }
}

int main() {
    test_types_of_upstream();
    test_other_types();
    return check::finish();
}
