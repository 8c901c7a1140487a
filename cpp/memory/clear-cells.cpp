#include "memory/clear-cells.h"

#include "ggml-backend.h"
#include "llama-kv-cache-dsa-iswa.h"
#include "llama-kv-cache-dsa.h"
#include "llama-kv-cache-dsv4.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache-msa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-idx.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct cell_range {
    size_t first, n;
};

// Runs of cells for which is_free(i) holds.
template <typename IsFree>
std::vector<cell_range> free_ranges(size_t n_cells, IsFree is_free) {
    std::vector<cell_range> ranges;
    for (size_t i = 0; i < n_cells; i++) {
        if (!is_free(i)) {
            continue;
        }
        if (ranges.empty() || ranges.back().first + ranges.back().n != i) {
            ranges.push_back({ i, 0 });
        }
        ranges.back().n++;
    }
    return ranges;
}

void clear_bytes(ggml_tensor * t, size_t offset, size_t n_bytes) {
    static const std::vector<uint8_t> zeros(1 << 20);
    for (size_t at = 0; at < n_bytes; at += zeros.size()) {
        ggml_backend_tensor_set(t, zeros.data(), offset + at, std::min(zeros.size(), n_bytes - at));
    }
}

// Row i is cell first_row + i.
void clear_rows(ggml_tensor * t, const std::vector<cell_range> & ranges, size_t first_row = 0) {
    for (const cell_range & range : ranges) {
        if (t) {
            clear_bytes(t, (first_row + range.first) * t->nb[1], range.n * t->nb[1]);
        }
    }
}

// Column i of each row is cell i: a row lies in one piece, its cells in many.
void clear_columns(ggml_tensor * t, size_t offset, size_t n_cells, size_t n_rows, const std::vector<cell_range> & ranges) {
    const size_t         n_cell = ggml_type_size(t->type);
    std::vector<uint8_t> row(n_cells * n_cell);
    for (size_t r = 0; r < n_rows && !ranges.empty(); r++, offset += row.size()) {
        ggml_backend_tensor_get(t, row.data(), offset, row.size());
        for (const cell_range & range : ranges) {
            memset(row.data() + range.first * n_cell, 0, range.n * n_cell);
        }
        ggml_backend_tensor_set(t, row.data(), offset, row.size());
    }
}

} // namespace

// A friend of the caches.
struct dqrelo_cells {
    static void clear(llama_kv_cache * cache) {
        if (!cache || cache->other) {
            return; // The cells are another cache's.
        }
        for (uint32_t s = 0; s < cache->n_stream; s++) {
            const llama_kv_cells & cells  = cache->v_cells[s];
            const auto             ranges = free_ranges(cells.size(), [&](size_t i) { return cells.is_empty((uint32_t) i); });
            for (const auto & layer : cache->layers) {
                clear_rows(layer.k_stream[s], ranges);
                if (layer.v && cache->v_trans) {
                    clear_columns(layer.v, s * layer.v->nb[2], cells.size(), (size_t) layer.v->ne[0], ranges);
                } else {
                    clear_rows(layer.v_stream[s], ranges);
                }
            }
        }
    }

    static void clear(llama_memory_recurrent * states) {
        const auto ranges = free_ranges(states->size, [&](size_t i) { return states->cells[i].is_empty(); });
        for (uint32_t group = 0; group <= states->n_rs_seq; group++) { // Each group is a snapshot.
            for (const auto * layers : { &states->r_l, &states->s_l, &states->p_l }) {
                for (ggml_tensor * t : *layers) {
                    clear_rows(t, ranges, (size_t) group * states->size);
                }
            }
        }
    }
};

void dqrelo::clear_free_cells(llama_memory_i & memory) {
    const auto clear = [](llama_memory_i * part) {
        if (part) {
            clear_free_cells(*part);
        }
    };
    if (auto * cache = dynamic_cast<llama_kv_cache *>(&memory)) {
        dqrelo_cells::clear(cache);
    } else if (auto * states = dynamic_cast<llama_memory_recurrent *>(&memory)) {
        dqrelo_cells::clear(states);
    } else if (auto * iswa = dynamic_cast<llama_kv_cache_iswa *>(&memory)) {
        clear(iswa->get_base());
        clear(iswa->get_swa());
    } else if (auto * dsa = dynamic_cast<llama_kv_cache_dsa *>(&memory)) {
        clear(dsa->get_mla());
        clear(dsa->get_lid());
    } else if (auto * dsa_iswa = dynamic_cast<llama_kv_cache_dsa_iswa *>(&memory)) {
        clear(dsa_iswa->get_dsa());
        clear(dsa_iswa->get_swa());
    } else if (auto * msa = dynamic_cast<llama_kv_cache_msa *>(&memory)) {
        clear(msa->get_base());
        clear(msa->get_idx());
    } else if (auto * dsv4 = dynamic_cast<llama_kv_cache_dsv4 *>(&memory)) {
        clear(dsv4->get_raw());
        clear(dsv4->get_csa());
        clear(dsv4->get_hca());
        clear(dsv4->get_lid());
    } else if (auto * hybrid = dynamic_cast<llama_memory_hybrid *>(&memory)) {
        auto * idx = dynamic_cast<llama_memory_hybrid_idx *>(&memory);
        clear(hybrid->get_mem_attn());
        clear(hybrid->get_mem_recr());
        clear(idx ? idx->get_mem_idx() : nullptr);
    } else if (auto * hybrid_iswa = dynamic_cast<llama_memory_hybrid_iswa *>(&memory)) {
        clear(hybrid_iswa->get_mem_attn());
        clear(hybrid_iswa->get_mem_recr());
    }
}
