// What a context does where its graphs cannot be reserved.
#include "llama-context.h"
#include "llama-impl.h"

#include <exception>

bool llama_context::dqrelo_reserve() {
    try {
        sched_reserve();
        return true;
    } catch (const std::exception & e) {
        LLAMA_LOG_ERROR("dqrelo: the graphs of the context cannot be reserved: %s\n", e.what());
        sched_need_reserve = true; // The function sched_reserve takes the mark away before it tries.
        return false;
    }
}
