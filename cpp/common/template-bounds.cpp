#include "template-bounds.h"

#include "jinja/runtime.h"

#include <limits>

#ifdef _MSC_VER
#include <intrin.h>
#endif

static thread_local dqrelo_template_scope * current = nullptr;

static const char * stack_now() {
#ifdef _MSC_VER
    return static_cast<const char *>(_AddressOfReturnAddress());
#else
    return static_cast<const char *>(__builtin_frame_address(0));
#endif
}

//
// scope
//

dqrelo_template_scope::dqrelo_template_scope(const dqrelo_template_request & request, const dqrelo_template_bounds & bounds) :
    outer(current),
    stack_start(stack_now()),
    n_steps_left(bounds.steps.of(request)),
    n_bytes_left(bounds.bytes.of(request)),
    n_values_max(bounds.values.of(request)),
    request(request),
    bounds(bounds) {
    current = this;
}

dqrelo_template_scope::~dqrelo_template_scope() {
    while (first != nullptr) {
        auto * value = static_cast<jinja::value_t *>(first);
        first->unlink();
        // What it holds is moved out first, since that may be the last that keeps the value itself.
        const auto items = std::move(value->val_arr);
        const auto pairs = std::move(value->val_obj);
        const auto func  = std::move(value->val_func);
        if (auto * object = dynamic_cast<jinja::value_object_t *>(value)) {
            const auto unordered = std::move(object->unordered);
        } else if (auto * function = dynamic_cast<jinja::value_func_t *>(value)) {
            const auto arg0 = std::move(function->arg0);
        } else if (auto * kwarg = dynamic_cast<jinja::value_kwarg_t *>(value)) {
            const auto val = std::move(kwarg->val);
        }
    }
    current = outer;
}

void dqrelo_template_scope::fail(const std::string & reason) {
    if (broken.empty()) {
        broken = "the chat template " + reason;
    }
    throw dqrelo_template_error(broken);
}

void dqrelo_template_scope::check() const {
    if (!broken.empty()) {
        throw dqrelo_template_error(broken);
    }
}

void dqrelo_template_scope::stack() {
    check();
    const char * now    = stack_now();
    const size_t n_used = now < stack_start ? stack_start - now : now - stack_start;
    if (n_used > DQRELO_TEMPLATE_STACK_MAX) {
        fail("nests or calls itself too deeply: more than " + std::to_string(DQRELO_TEMPLATE_STACK_MAX) + " bytes of stack");
    }
}

// Returns how a bound reads in an error line.
static std::string bound_text(const dqrelo_template_bound & bound, const dqrelo_template_request & request, const char * unit) {
    std::string text = "more than " + std::to_string(bound.of(request)) + " " + unit;
    if (request.n_messages > 0) {
        text += " for " + std::to_string(request.n_messages) + " messages of " + std::to_string(request.n_bytes) + " bytes";
    }
    return text;
}

void dqrelo_template_scope::steps(size_t n) {
    stack();
    if (n > n_steps_left) {
        fail("runs too long: " + bound_text(bounds.steps, request, "steps"));
    }
    n_steps_left -= n;
}

void dqrelo_template_scope::bytes(size_t n) {
    steps(1);
    if (n > n_bytes_left) {
        fail("makes too much text: " + bound_text(bounds.bytes, request, "bytes"));
    }
    n_bytes_left -= n;
}

void dqrelo_template_scope::value() {
    if (++n_values > n_values_max) {
        n_values--;
        fail("has too many values: " + bound_text(bounds.values, request, "at a time"));
    }
}

void dqrelo_template_scope::prompt(size_t n_bytes) {
    if (n_bytes > bounds.prompt.of(request)) {
        fail("makes a prompt of " + std::to_string(n_bytes) + " bytes: " + bound_text(bounds.prompt, request, "bytes"));
    }
}

void dqrelo_template_scope::marker(size_t n_bytes) {
    if (n_bytes > DQRELO_TEMPLATE_MARKER_MAX) {
        fail("begins a tool call with " + std::to_string(n_bytes) + " bytes, expected at most " +
             std::to_string(DQRELO_TEMPLATE_MARKER_MAX));
    }
}

//
// what the engine calls
//

void dqrelo_template_source(size_t n_bytes) {
    if (current != nullptr && n_bytes > DQRELO_TEMPLATE_SOURCE_MAX) {
        current->fail("is too long: " + std::to_string(n_bytes) + " bytes, expected at most " + std::to_string(DQRELO_TEMPLATE_SOURCE_MAX));
    }
}

void dqrelo_template_check_levels(size_t n_levels) {
    if (current != nullptr && n_levels > DQRELO_TEMPLATE_LEVELS_MAX) {
        current->fail("nests too deeply: more than " + std::to_string(DQRELO_TEMPLATE_LEVELS_MAX) + " levels");
    }
}

void dqrelo_template_stack() {
    if (current != nullptr) {
        current->stack();
    }
}

void dqrelo_template_step() {
    dqrelo_template_read(0);
}

void dqrelo_template_read(size_t n_bytes) {
    if (current != nullptr) {
        current->steps(1 + n_bytes / DQRELO_TEMPLATE_STEP_BYTES);
    }
}

void dqrelo_template_bytes(size_t n) {
    if (current != nullptr) {
        current->bytes(n);
    }
}

void dqrelo_template_bytes(size_t n_each, size_t n_times) {
    const size_t n_max = std::numeric_limits<size_t>::max();
    dqrelo_template_bytes(n_times > 0 && n_each > n_max / n_times ? n_max : n_each * n_times);
}

std::string dqrelo_template_sample(std::string prompt) {
    if (current != nullptr && prompt.size() > DQRELO_TEMPLATE_SAMPLE_MAX) {
        current->fail("makes a prompt of " + std::to_string(prompt.size()) + " bytes of a few sample messages, expected at most " +
                      std::to_string(DQRELO_TEMPLATE_SAMPLE_MAX));
    }
    return prompt;
}

//
// values
//

dqrelo_template_value::dqrelo_template_value() {
    if (current == nullptr) {
        return;
    }
    current->value();
    scope = current;
    next  = scope->first;
    if (next != nullptr) {
        next->previous = this;
    }
    scope->first = this;
}

dqrelo_template_value::~dqrelo_template_value() {
    unlink();
}

void dqrelo_template_value::unlink() {
    if (scope == nullptr) {
        return;
    }
    (previous != nullptr ? previous->next : scope->first) = next;
    if (next != nullptr) {
        next->previous = previous;
    }
    scope->n_values--;
    scope = nullptr;
}

void dqrelo_template_release(dqrelo_template_items & items, dqrelo_template_pairs & pairs) {
    if (items.empty() && pairs.empty()) {
        return;
    }
    // What is to be freed. A value that is freed here adds what it holds itself.
    using held                                      = std::pair<dqrelo_template_items, dqrelo_template_pairs>;
    static thread_local std::vector<held> * waiting = nullptr;

    if (waiting != nullptr) {
        waiting->emplace_back(std::move(items), std::move(pairs));
        return;
    }
    std::vector<held> own;
    own.emplace_back(std::move(items), std::move(pairs));
    waiting = &own;
    while (!own.empty()) {
        const held next = std::move(own.back());
        own.pop_back();
    }
    waiting = nullptr;
}
