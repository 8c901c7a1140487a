// clear-cells.h: zeroes what sequences left behind in the memory of a context.
#pragma once

struct llama_memory_i;

namespace dqrelo {

// Zeroes the data of every cell that no sequence has: keys and values, and the states of recurrent layers. Nothing may be running.
void clear_free_cells(llama_memory_i & memory);

} // namespace dqrelo
