// template-bounds.h: bounds on what a chat template may take. A delta brings a template that nobody has looked at; upstream's engine
// (common/jinja) parses and runs it as it comes. The engine's sources include this header and call the functions below.
//
// A scope is the use of a template from outside: to read it and find out what it can do, or to write one prompt. The bounds hold for each
// scope; without one nothing is counted. They do not depend on the clock: the same template with the same messages breaks a bound or does
// not, on every machine.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace jinja {
struct value_t;
}

// A bound was broken; what() is one line that names it.
struct dqrelo_template_error : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// Bytes of a template's text. The largest known ones have 20 thousand.
constexpr size_t DQRELO_TEMPLATE_SOURCE_MAX = 256 * 1024;

// Levels of a template's syntax tree, which is freed by recursion. Known templates have 40.
constexpr size_t DQRELO_TEMPLATE_LEVELS_MAX = 500;

// Bytes of stack from the start of a scope. Half of the smallest stack that threads have on usual systems (macOS: 512 KiB). Known templates
// take 30 thousand. Sanitizers make frames several times as large, on a stack of 8 MiB.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t DQRELO_TEMPLATE_STACK_MAX = 1024 * 1024;
#else
constexpr size_t DQRELO_TEMPLATE_STACK_MAX = 256 * 1024;
#endif

// What a prompt is made for.
struct dqrelo_template_request {
    size_t n_bytes    = 0; // bytes of text
    size_t n_messages = 0;
};

// What a scope may take of something: a part for itself, and more for every byte and message of the request, so that long chats have what
// they need.
struct dqrelo_template_bound {
    size_t n_base;
    size_t n_per_byte;
    size_t n_per_message;

    size_t of(const dqrelo_template_request & request) const {
        return n_base + n_per_byte * request.n_bytes + n_per_message * request.n_messages;
    }
};

struct dqrelo_template_bounds {
    // Steps: a node of the syntax tree that is run, a value that is read, and one more for every 256 bytes of it. A second has 3 to 15
    // million. Known templates take 100 thousand to be read. For 1000 messages most take 2 million, but Gemma 4's, which looks
    // at all others for each, 210 million.
    dqrelo_template_bound steps = { 10000000, 64, 300000 };

    // Bytes of text and lists that are made, those in between too.
    dqrelo_template_bound bytes = { 64 * 1024 * 1024, 64, 64 * 1024 };

    // Values that are there at a time, of some 400 bytes each.
    dqrelo_template_bound values = { 250000, 2, 500 };

    // Bytes of a prompt: what the tokenizer makes of one takes 50 times as much.
    dqrelo_template_bound prompt = { 1024 * 1024, 16, 16 * 1024 };
};

constexpr size_t DQRELO_TEMPLATE_STEP_BYTES = 256;

// Bytes of a prompt of upstream's own sample messages, by which it finds out how a template writes tool calls: it compares them in
// quadratic time. Known templates make 7 thousand.
constexpr size_t DQRELO_TEMPLATE_SAMPLE_MAX = 64 * 1024;

// Bytes of what begins a tool call: it becomes a regular expression, which is compiled and run by recursion. Known ones have 40.
constexpr size_t DQRELO_TEMPLATE_MARKER_MAX = 1024;

class dqrelo_template_value;

// The use of a template by this thread, from here to the end of the object's life. Values that are left then (they refer to one another)
// are freed.
class dqrelo_template_scope {
public:
    explicit dqrelo_template_scope(const dqrelo_template_request & request = {}, const dqrelo_template_bounds & bounds = {});
    ~dqrelo_template_scope();
    dqrelo_template_scope(const dqrelo_template_scope &)             = delete;
    dqrelo_template_scope & operator=(const dqrelo_template_scope &) = delete;

    // Throws dqrelo_template_error if a bound was broken, even where the error was caught in between. Everything below throws it too from
    // then on, so that what catches it comes to an end.
    void check() const;

    // Counts what was taken. These throw dqrelo_template_error.
    void stack();
    void steps(size_t n);
    void bytes(size_t n);
    void value();
    void prompt(size_t n_bytes);
    void marker(size_t n_bytes);

    [[noreturn]] void fail(const std::string & reason); // Every later check fails too.

private:
    friend class dqrelo_template_value;

    dqrelo_template_scope * outer;
    const char *            stack_start;
    size_t                  n_steps_left;
    size_t                  n_bytes_left;
    size_t                  n_values_max;
    size_t                  n_values = 0;
    dqrelo_template_value * first    = nullptr; // Begins the list of the values that are alive.
    dqrelo_template_request request;
    dqrelo_template_bounds  bounds;
    std::string             broken;
};

// --- The engine calls these. Without a scope they do nothing.

void dqrelo_template_source(size_t n_bytes);
void dqrelo_template_check_levels(size_t n_levels);
void dqrelo_template_stack();
void dqrelo_template_step();
void dqrelo_template_read(size_t n_bytes);  // Counts bytes that are compared, or copied for a moment.
void dqrelo_template_bytes(size_t n_bytes); // Counts bytes that are made.

void dqrelo_template_bytes(size_t n_each, size_t n_times);

// Returns a prompt of sample messages.
std::string dqrelo_template_sample(std::string prompt);

// The base of every value: counts it, and keeps the list of those that are there.
class dqrelo_template_value {
public:
    dqrelo_template_value();
    dqrelo_template_value(const dqrelo_template_value &) : dqrelo_template_value() {}
    dqrelo_template_value & operator=(const dqrelo_template_value &) { return *this; }
    ~dqrelo_template_value();

private:
    friend class dqrelo_template_scope;

    void unlink();

    dqrelo_template_scope * scope    = nullptr; // NULL means that it is in no list.
    dqrelo_template_value * previous = nullptr;
    dqrelo_template_value * next     = nullptr;
};

// Frees what a value holds. Not by recursion: lists in lists may be deeper than the stack.
using dqrelo_template_items = std::vector<std::shared_ptr<jinja::value_t>>;
using dqrelo_template_pairs = std::vector<std::pair<std::shared_ptr<jinja::value_t>, std::shared_ptr<jinja::value_t>>>;
void dqrelo_template_release(dqrelo_template_items & items, dqrelo_template_pairs & pairs);

// Levels of the syntax tree in a part of a node: another node, several, or text.
template <typename T>
size_t dqrelo_template_levels(const T & /* text */) {
    return 0;
}
template <typename T>
size_t dqrelo_template_levels(const std::unique_ptr<T> & node) {
    return node ? node->n_levels : 0;
}
template <typename A, typename B>
size_t dqrelo_template_levels(const std::pair<A, B> & nodes) {
    return std::max(dqrelo_template_levels(nodes.first), dqrelo_template_levels(nodes.second));
}
template <typename T>
size_t dqrelo_template_levels(const std::vector<T> & nodes) {
    size_t n_levels = 0;
    for (const auto & node : nodes) {
        n_levels = std::max(n_levels, dqrelo_template_levels(node));
    }
    return n_levels;
}

// Levels of a node with these parts. Throws dqrelo_template_error where there are too many.
template <typename... parts>
size_t dqrelo_template_node(const parts &... p) {
    const size_t n_levels = 1 + std::max({ size_t(0), dqrelo_template_levels(p)... });
    dqrelo_template_check_levels(n_levels);
    return n_levels;
}
