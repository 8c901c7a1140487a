// test-delta-sparse.cpp: sparse weights of a delta file: the reader gives their parts, and refuses places that do not agree.
#include "support/check.h"
#include "cpu/stack.h"
#include "file/delta-file.h"
#include "support/gguf-builder.h"
#include "support/sparse-builder.h"

using namespace dqrelo;
using namespace testing;

static const char * const PATH = "test-delta-sparse.dq.gguf";

#include "support/open-delta.h"

// Returns true if the file is refused, with its declarations brought up to date, with one line that has `part` in it.
static bool refused(delta_builder & d, const std::string & part) {
    d.declare();
    return refused(d.file(), part);
}

static tensor & tensor_of(delta_builder & d, const std::string & name) {
    return *std::find_if(d.tensors.begin(), d.tensors.end(), [&](const tensor & t) { return t.name == name; });
}

static void test_entries() {
    check::begin("entries/lists");
    delta_builder d = delta_of_sparse_weights();
    std::string   err;
    const auto    delta = open_bytes(d.file(), err);
    CHECK(delta != nullptr);
    if (!delta) {
        printf("  %s\n", err.c_str());
        return;
    }
    CHECK(delta_file::open(PATH, with_digests(), err) != nullptr);
    dqrelo_entry entry = delta->entry(0);
    CHECK(delta->weights()[0].n_entries == d.n_entries[0] && !delta->weights()[0].dense && delta->weights()[3].n_entries == 0);
    CHECK(entry.n_in == 520 && entry.n_out == 24 && entry.n_planes == 0 && entry.rank == 0 && entry.dense == nullptr);
    CHECK(entry.type_entries == GGML_TYPE_I8 && entry.mask == nullptr && same_bytes(entry.count, tensor_of(d, "lists.dq_count").data) &&
          same_bytes(entry.column, tensor_of(d, "lists.dq_column").data) && same_bytes(entry.start, tensor_of(d, "lists.dq_start").data) &&
          same_bytes(entry.entries, tensor_of(d, "lists.dq_entry").data) && same_bytes(entry.escale, tensor_of(d, "lists.dq_escale").data));

    check::begin("entries/mask");
    entry = delta->entry(1);
    CHECK(entry.type_entries == GGML_TYPE_BF16 && entry.count == nullptr && entry.column == nullptr && entry.escale == nullptr &&
          same_bytes(entry.mask, tensor_of(d, "mask.dq_mask").data) && same_bytes(entry.entries, tensor_of(d, "mask.dq_entry").data));

    check::begin("entries/a stack");
    const dqrelo_entry stack = delta->entry(2);
    CHECK(stack.n_mat == 3);
    for (size_t m = 0; m < 3; ++m) {
        entry = dqrelo_entry_matrix(&stack, (int64_t) m);
        CHECK(same_bytes(entry.count, tensor_of(d, "experts.dq_count").data, 16 * m, 16) &&
              same_bytes(entry.start, tensor_of(d, "experts.dq_start").data, 32 * m, 32));
        CHECK(entry.entries == stack.entries && entry.column == stack.column);
    }
    CHECK(delta->entry(3).entries == nullptr && delta->entry(3).dense != nullptr);
}

static void test_declarations() {
    check::begin("refusals/number of entries");
    delta_builder d = delta_of_sparse_weights();
    d.n_entries[0]  = 520 * 24 + 1;
    CHECK(refused(d, "lists: 12481 entries, expected 1 to 12480"));
    d.n_entries[0] = ~0ull;
    CHECK(refused(d, "lists: 18446744073709551615 entries, expected 1 to 12480"));
    d              = delta_of_sparse_weights();
    d.n_entries[0] = 5;
    CHECK(refused(d, "'lists.dq_column' has shape"));
    d.n_entries[0] = 0;
    CHECK(refused(d, "tensor 'lists.dq_dense' is missing"));
    d.n_entries = { 0, 0, 0, 0 };
    d.set("dqrelo.weight.n_entries", d.n_entries);
    CHECK(refused(d, "metadata key 'dqrelo.weight.n_entries' has zeros only, expected it where a weight is sparse"));
    d.set("dqrelo.weight.n_entries", std::vector<uint32_t>(4, 1));
    CHECK(refused(d, "metadata key 'dqrelo.weight.n_entries' has type [UINT32], expected [UINT64]"));
    d.set("dqrelo.weight.n_entries", std::vector<uint64_t>(3, 1));
    CHECK(refused(d, "metadata key 'dqrelo.weight.n_entries' has 3 items, expected 4"));
    d = delta_of_every_form();
    d.set("dqrelo.weight.n_entries", std::vector<uint64_t>(d.rank.size(), 1));
    CHECK(refused(d, "metadata key 'dqrelo.weight.n_entries' belongs to version 2"));

    check::begin("refusals/other parts beside entries");
    d             = delta_of_sparse_weights();
    d.n_planes[1] = 1;
    CHECK(refused(d, "mask: a sparse weight has no planes, factors or column scale"));
    d         = delta_of_sparse_weights();
    d.rank[1] = 2;
    CHECK(refused(d, "mask: a sparse weight has no planes, factors or column scale"));
    d                    = delta_of_sparse_weights();
    d.plane_ranks[8 + 0] = 8;
    CHECK(refused(d, "mask: a sparse weight has no planes, factors or column scale"));

    check::begin("refusals/shape and type");
    d              = delta_of_sparse_weights();
    d.n_entries[3] = 4;
    CHECK(refused(d, "norm: shape 24 cannot have sign bits"));
    d                                  = delta_of_sparse_weights();
    tensor_of(d, "mask.dq_entry").type = GGML_TYPE_F32;
    tensor_of(d, "mask.dq_entry").data += tensor_of(d, "mask.dq_entry").data;
    CHECK(refused(d, "mask.dq_entry: type f32, expected f16, bf16, i8"));
    d                                  = delta_of_sparse_weights();
    tensor_of(d, "mask.dq_start").type = GGML_TYPE_F32;
    CHECK(refused(d, "'mask.dq_start' is stored as f32, expected i32"));
}

static void test_places() {
    check::begin("refusals/places");
    delta_builder d = delta_of_sparse_weights();
    tensor_of(d, "mask.dq_mask").data[0] ^= 1;
    const bool was_set = !(tensor_of(d, "mask.dq_mask").data[0] & 1);
    CHECK(refused(d, "tensor 'mask.dq_mask' has the places of " + std::to_string(d.n_entries[1] + (was_set ? -1 : 1)) +
                         " entries, expected " + std::to_string(d.n_entries[1])));
    d = delta_of_sparse_weights();
    tensor_of(d, "lists.dq_count").data[4]++;
    CHECK(refused(d, "tensor 'lists.dq_count' has the places of " + std::to_string(d.n_entries[0] + 1) + " entries, expected " +
                         std::to_string(d.n_entries[0])));
    d = delta_of_sparse_weights();
    tensor_of(d, "experts.dq_start").data[4 * 9]++;
    CHECK(refused(d, "tensor 'experts.dq_start' has "));
    CHECK(refused(d, " for row 9, expected "));
    d                                      = delta_of_sparse_weights();
    tensor_of(d, "lists.dq_start").data[0] = 1;
    CHECK(refused(d, "tensor 'lists.dq_start' has 1 for row 0, expected 0"));

    check::begin("refusals/columns");
    d                    = delta_of_sparse_weights();
    std::string & lists  = tensor_of(d, "lists.dq_column").data;
    const size_t  last   = (size_t) tensor_of(d, "lists.dq_count").data[0] - 1; // of the first block
    const int     before = (uint8_t) lists[last - 1];
    lists[last]          = lists[last - 1];
    CHECK(refused(d, "tensor 'lists.dq_column' has column " + std::to_string(before) + " in entry " + std::to_string(last) +
                         ", expected more than " + std::to_string(before)));
    // The last block of a row has 8 columns.
    d                         = delta_of_sparse_weights();
    const std::string & count = tensor_of(d, "lists.dq_count").data;
    size_t              at    = 0;
    size_t              b     = 0;
    for (; b % 3 != 2 || count[b] == 0; b++) {
        at += (uint8_t) count[b];
    }
    at += (uint8_t) count[b] - 1u;
    tensor_of(d, "lists.dq_column").data[at] = 8;
    CHECK(refused(d, "tensor 'lists.dq_column' has column 8 in entry " + std::to_string(at) + ", expected less than 8"));
}

static void test_finite() {
    check::begin("refusals/numbers that are not finite");
    for (const char byte : { '\x7c', '\xfc', '\x7f' }) {
        delta_builder d                        = delta_of_sparse_weights();
        tensor_of(d, "lists.dq_entry").data[3] = byte;
        CHECK(refused(d, "'lists.dq_entry' has 1 numbers that are NaN or infinite"));
    }
    delta_builder d = delta_of_sparse_weights();
    tensor_of(d, "mask.dq_entry").data.replace(2, 2, "\x80\x7f", 2);
    CHECK(refused(d, "'mask.dq_entry' has 1 numbers that are NaN or infinite"));
    d = delta_of_sparse_weights();
    tensor_of(d, "lists.dq_escale").data.replace(0, 4, "\0\0\x80\x7f", 4);
    CHECK(refused(d, "'lists.dq_escale' has 1 numbers that are NaN or infinite"));
}

int main() {
    test_entries();
    test_declarations();
    test_places();
    test_finite();
    remove(PATH);
    return check::finish();
}
