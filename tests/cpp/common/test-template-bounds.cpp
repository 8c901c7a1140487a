// Templates that nest, recur, loop, grow or refer to themselves without end: each breaks the bound that it should, and the process lives.
#include "support/check.h"
#include "support/template-run.h"

#include <string>
#include <vector>

using template_run::prompt_of;

static const char * const STACK  = "too deeply";
static const char * const STEPS  = "runs too long";
static const char * const BYTES  = "makes too much text";
static const char * const VALUES = "too many values";
static const char * const PROMPT = "makes a prompt of";
static const char * const LENGTH = "is too long";

struct template_case {
    std::string name;
    std::string source;
    std::string expected; // The prompt, or the error, has this text.
};

static std::string times(size_t n, const std::string & text) {
    std::string all;
    for (size_t i = 0; i < n; i++) {
        all += text;
    }
    return all;
}

static std::string nested(size_t n, const std::string & open, const std::string & inner, const std::string & close) {
    return times(n, open) + inner + times(n, close);
}

static std::string loop(const std::string & n, const std::string & body) {
    return "{% for i in range(" + n + ") %}" + body + "{% endfor %}";
}

// Deeper than the stack, where frames are of the usual size; the sanitizer is to look at values, not at the stack.
#if defined(__SANITIZE_ADDRESS__)
static const std::string DEEP = "2500";
#else
static const std::string DEEP = "7000";
#endif

static const std::string NS = "{% set ns = namespace(x=1) %}";

// Every form in which a syntax tree can be deep; `n` levels.
static std::vector<template_case> deep_sources(size_t n, const std::string & expected) {
    return {
        { "parentheses", "{{ " + nested(n, "(", "1", ")") + " }}", expected },
        { "lists", "{{ " + nested(n, "[", "1", "]") + " }}", expected },
        { "dicts", "{{ " + nested(n, "{'a':", "1", "}") + " }}", expected },
        { "not", "{{ " + times(n, "not ") + "1 }}", expected },
        { "minus", "{{ " + times(n, "- ") + "1 }}", expected },
        { "calls", "{{ a" + times(n, "()") + " }}", expected },
        { "arguments", "{{ " + nested(n, "a(", "1", ")") + " }}", expected },
        { "keyword arguments", "{{ " + nested(n, "a(b=", "1", ")") + " }}", expected },
        { "subscripts", "{{ " + nested(n, "a[", "1", "]") + " }}", expected },
        { "slices", "{{ " + nested(n, "a[1:", "1", "]") + " }}", expected },
        { "members", "{{ a" + times(n, ".b") + " }}", expected },
        { "filters", "{{ a" + times(n, "|string") + " }}", expected },
        { "filters' arguments", "{{ " + nested(n, "a|default(", "1", ")") + " }}", expected },
        { "sums", "{{ 1" + times(n, " + 1") + " }}", expected },
        { "products", "{{ 1" + times(n, " * 1") + " }}", expected },
        { "texts", "{{ 'a'" + times(n, " ~ 'a'") + " }}", expected },
        { "or", "{{ 0" + times(n, " or 0") + " }}", expected },
        { "and", "{{ 1" + times(n, " and 1") + " }}", expected },
        { "comparisons", "{{ 1" + times(n, " == 1") + " }}", expected },
        { "conditions", "{{ " + times(n, "1 if 0 else ") + "1 }}", expected },
        { "selections", "{{ " + nested(n, "(1 if ", "1", ")") + " }}", expected },
        { "ifs", nested(n, "{% if 1 %}", "1", "{% endif %}"), expected },
        { "elifs", "{% if 0 %}" + times(n, "{% elif 0 %}") + "{% endif %}", expected },
        { "fors", nested(n, "{% for a in [1] %}", "1", "{% endfor %}"), expected },
        { "sets", nested(n, "{% set a %}", "1", "{% endset %}"), expected },
        { "macros", nested(n, "{% macro a() %}", "1", "{% endmacro %}"), expected },
        { "filter blocks", nested(n, "{% filter upper %}", "1", "{% endfilter %}"), expected },
        { "call blocks", "{% macro a() %}{{ caller() }}{% endmacro %}" + nested(n, "{% call a() %}", "1", "{% endcall %}"), expected },
        { "open parentheses", "{{ " + times(n, "("), expected },
    };
}

static std::vector<template_case> recursions() {
    return {
        { "a macro calls itself", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", STACK },
        { "two macros call each other", "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}", STACK },
        { "a macro's default calls it", "{% macro a(b=a()) %}{{ b }}{% endmacro %}{{ a() }}", STACK },
        { "a macro calls itself twice, 60 deep",
          "{% macro a(n) %}{% if n > 0 %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(60) }}", "too" },
    };
}

// Returns templates with values that refer to themselves, or are deeper than the stack.
static std::vector<template_case> deep_values() {
    const std::string self   = NS + "{% set ns.x = ns %}";
    const std::string list   = "{% set l = [1] %}{% set _ = l.append(l) %}";
    const std::string deep   = NS + loop(DEEP, "{% set ns.x = [ns.x] %}");
    const std::string tuples = NS + loop(DEEP, "{% set t = ns.x, 1 %}{% set ns.x = t %}");
    return {
        { "tojson of itself", self + "{{ ns|tojson }}", STACK },
        { "string of itself", self + "{{ ns|string }}", STACK },
        { "two refer to each other", NS + "{% set b = namespace(x=ns) %}{% set ns.x = b %}{{ b|tojson }}", STACK },
        { "a list prints itself", list + "{{ l }}", STACK },
        { "a list in a text", list + "{{ 'a' ~ l }}", STACK },
        { "tojson of a list of itself", list + "{{ l|tojson }}", STACK },
        { "a list of its own function", "{% set l = [1] %}{% set _ = l.append(l.append) %}{{ l|string }}", STACK },
        { "only refers to itself", self + "alive", "alive" },
        { "a deep list", deep + "alive", "alive" },
        { "a deep list is dropped", deep + "{% set ns.x = 1 %}alive", "alive" },
        { "tojson of a deep list", deep + "{{ ns.x|tojson }}", STACK },
        { "string of a deep list", deep + "{{ ns.x|string }}", STACK },
        { "a deep list is printed", deep + "{{ ns.x }}", STACK },
        { "a deep tuple as a key", tuples + "{{ ns.x in {1: 2} }}", STACK },
        { "a deep tuple is compared", tuples + "{{ ns.x == ns.x }}", "too" },
        { "deep keyword arguments", NS + loop(DEEP, "{% set ns.x = undef|default(a=ns.x) %}") + "{% set ns.x = 1 %}alive", "alive" },
        { "deep functions", NS + loop(DEEP, "{% set ns.x = [ns.x.append] if ns.x is not number else [1] %}") + "alive", "alive" },
    };
}

// Loops, and texts and lists that grow.
static std::vector<template_case> growth() {
    const std::string many    = "{% set l = range(100000)|list %}";
    const std::string text    = "{% set t = 'a' * 1000000 %}";
    const auto        doubled = [](const std::string & start, const std::string & next) {
        return NS + "{% set ns.x = " + start + " %}" + loop("60", "{% set ns.x = " + next + " %}");
    };
    return {
        { "an endless loop", loop("1000000000", ""), VALUES },
        { "loops in loops", loop("9999", loop("9999", loop("9999", ""))), STEPS },
        { "a long range", "{{ range(100000000)|length }}", VALUES },
        { "a range of huge steps", "{{ range(0, 9223372036854775807, 9223372036854775806)|length }}", "" },
        { "a text is doubled", doubled("'a'", "ns.x ~ ns.x"), BYTES },
        { "a text is doubled by +", doubled("'a'", "ns.x + ns.x"), BYTES },
        { "a text is doubled by replace", doubled("'a'", "ns.x|replace('a', 'aa')"), "too" },
        { "a text is doubled by join", doubled("'a'", "[ns.x, ns.x]|join"), BYTES },
        { "a text is doubled by format", doubled("'a'", "'{}{}'.format(ns.x, ns.x)"), "too" },
        { "a text is doubled by a block", NS + "{% set ns.x = 'a' %}" + loop("60", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
          BYTES },
        { "a list is doubled", doubled("[1]", "ns.x + ns.x"), "too" },
        { "a tree is doubled", doubled("1", "[ns.x, ns.x]") + "alive", "alive" },
        { "tojson of a doubled tree", doubled("1", "[ns.x, ns.x]") + "{{ ns.x|tojson }}", "too" },
        { "string of a doubled tree", doubled("1", "[ns.x, ns.x]") + "{{ ns.x|string }}", "too" },
        { "a doubled tree is printed", doubled("1", "[ns.x, ns.x]") + "{{ ns.x }}", "too" },
        { "doubled tuples are compared", NS + loop("60", "{% set t = ns.x, ns.x %}{% set ns.x = t %}") + "{{ ns.x == ns.x }}", STEPS },
        { "a doubled tuple as a key", NS + loop("60", "{% set t = ns.x, ns.x %}{% set ns.x = t %}") + "{{ ns.x in {1: 2} }}", STEPS },
        { "a repeated text", "{{ 'a' * 1000000000 }}", "too" },
        { "a text repeated 2^63 times", "{{ 'a' * 9223372036854775807 }}", "too" },
        { "no text repeated 2^63 times", "{{ '' * 9223372036854775807 }}", "too" },
        { "no part repeated 2^63 times", "{{ (''|trim) * 9223372036854775807 }}", STEPS },
        { "many empty parts are trimmed", "{% set t = '' * 100000 %}" + loop("1000", "{% set u = t|trim %}"), STEPS },
        { "replace by a long text", "{% set t = 'a' * 100000 %}{{ t|replace('a', t) }}", BYTES },
        { "replace nothing by a long text", "{% set t = 'a' * 100000 %}{{ t|replace('', t) }}", BYTES },
        { "many places to replace", "{% set t = 'a' * 20000 %}{{ t|replace('a', 'bb')|length }}", "40000" },
        { "a million places to split", text + "{{ t.split('a')|length }}", "too" },
        { "a long separator", many + "{{ l|join('a' * 100000) }}", BYTES },
        { "a wide indent", "{{ 'a'|indent(1000000000000, true) }}", BYTES },
        { "a negative indent", "{{ 'a'|indent(-1, true) }}", "error" },
        { "many lines are indented", "{{ ('a\\n' * 100000)|indent(100000) }}", BYTES },
        { "tojson with a wide indent", "{{ [[1]]|tojson(indent=2147483647) }}", BYTES },
        { "tojson with a long separator", many + "{{ l|tojson(separators=('a' * 100000, ':')) }}", BYTES },
        { "a long list is searched", many + loop("99999", "{% if 1.5 in l %}{% endif %}"), STEPS },
        { "a long text is searched", text + loop("99999", "{% if 'b' in t %}{% endif %}"), STEPS },
        { "a long text is measured", text + loop("99999", "{% set n = t|length %}"), STEPS },
        { "a long text is indexed", text + loop("99999", "{% set n = t[1] %}"), STEPS },
        { "a long text is a key", text + "{% set d = {t: 1} %}" + loop("99999", "{% set n = d[t] %}"), STEPS },
        { "long keys are sorted", text + "{% set d = {t: 1} %}" + loop("99999", "{% set n = d|dictsort %}"), "too" },
        { "a long text is compared", text + loop("99999", "{% if t == t %}{% endif %}"), STEPS },
        { "a long list is sorted", many + loop("99999", "{% set n = l|sort %}"), "too" },
        { "the largest of a long list", many + loop("99999", "{% set n = l|max %}"), STEPS },
        { "the first of a long list is taken", many + loop("99999", "{% set n = l.pop(0) %}"), STEPS },
        { "a chain of maps",
          "{% set l = [] %}" + loop("20000", "{% set _ = l.append({'a': i}) %}") + "{{ l" + times(200, "|map(attribute='a')") +
              "|length }}",
          STEPS },
        { "a list in a list", many + "{{ l|select('in', l)|list|length }}", STEPS },
        { "many variables in a loop",
          loop("3000", "") +
              times(3000, "{% set v"
                          "a = 1 %}") +
              loop("99999999", ""),
          "too" },
        { "a long name in a loop", loop("200000", "{{ " + times(200000, "a") + " }}"), STEPS },
        { "a long text in a loop", loop("200000", times(200000, "a")), "too" },
        { "a long prompt", "{% set t %}" + times(1000, "a") + "{% endset %}{{ t * 2000 }}", PROMPT },
        { "a long template", times(300000, "a"), LENGTH },
    };
}

// Returns templates that crashed, or read what they must not.
static std::vector<template_case> arithmetic() {
    const std::string min = "{% set m = -9223372036854775807 - 1 %}";
    return {
        { "divisible by 0", "{{ 4 is divisibleby(0) }}", "division by zero" },
        { "the least number divisible by -1", min + "{{ m is divisibleby(-1) }}", "True" },
        { "a slice with the least step", min + "{{ [1, 2, 3][0:2:m]|length }}{{ 'abc'[2::m] }}", "0c" },
        { "a slice with the largest step", "{{ 'abcdef'[5:100:9223372036854775807] }}", "f" },
        { "a slice with step 0", "{{ 'abc'[::0] }}", "slice step cannot be zero" },
        { "a list shrinks while it is unpacked",
          "{% set l = [[1, 2], [3, 4]] %}{% for a, b in l %}{% set _ = l[1].pop() if l[1]|length == 2 else 0 %}{{ a }}{{ b }}{% endfor %}",
          "error" },
        { "numbers and texts that have no order are sorted",
          "{% set l = [] %}" + loop("200", "{% set _ = l.append(i % 7) %}{% set _ = l.append((i * 7 % 11)|string) %}") +
              "{{ l|sort|length }}",
          "400" },
        { "no numbers are sorted",
          "{% set l = [] %}" + loop("500", "{% set _ = l.append(0 / 0 if i is divisibleby(3) else i * 7919 % 101) %}") +
              "{{ l|sort|length }}",
          "500" },
        { "a number that is too large", "{{ 99999999999999999999999 }}", "error" },
        { "a break outside of a loop", "{% break %}", "error" },
        { "the messages are taken away", "{% set _ = messages.pop() %}", "error" },
        { "a message is changed", "{% set messages[0].content = 5 %}alive", "alive" },
    };
}

// Returns bounds with a tenth of the steps, because the sanitizers are slow.
static dqrelo_template_bounds few_steps() {
    dqrelo_template_bounds bounds;
    bounds.steps.n_base /= 10;
    return bounds;
}

static dqrelo_template_bounds many_steps() {
    dqrelo_template_bounds bounds;
    bounds.steps.n_base *= 5;
    return bounds;
}

static void test_cases(const char * name, const std::vector<template_case> & cases, const dqrelo_template_bounds & bounds = few_steps()) {
    check::begin(name);
    for (const auto & c : cases) {
        const std::string prompt = prompt_of(c.source, 1, bounds);
        const bool        good   = prompt.find(c.expected) != std::string::npos;
        if (!good) {
            printf("  %s: expected '%s', got '%s'\n", c.name.c_str(), c.expected.c_str(), prompt.substr(0, 300).c_str());
        }
        CHECK(good);
    }
}

// Deep, and still read: what real templates do.
static void test_enough() {
    check::begin("real templates have what they need");
    for (const auto & c : deep_sources(12, "")) {
        const std::string prompt = prompt_of(c.source);
        const bool        broken = prompt.find("error: the chat template") != std::string::npos;
        if (broken) {
            printf("  %s: %s\n", c.name.c_str(), prompt.c_str());
        }
        CHECK(!broken);
    }
    const std::string chat = "{% for m in messages %}<|{{ m.role }}|>{{ m['content']|trim }}{{ eos_token }}{% endfor %}";
    CHECK(prompt_of(chat, 2) == "<|user|>message 0</s><|assistant|>message 1</s>");
    CHECK(prompt_of(chat, 1000).find("message 999") != std::string::npos);
    // For each message a look at all before it, as in templates that search for the last question.
    const std::string quadratic =
        "{% for m in messages %}{% for o in messages %}{% if o.role == 'tool' %}{{ o.content }}{% endif %}{% endfor %}"
        "{{ m.content }}{% endfor %}";
    CHECK(prompt_of(quadratic, 300).find("message 299") != std::string::npos);
}

// A value that refers to itself is freed with its scope.
static void test_freed() {
    check::begin("values that refer to themselves are freed");
    for (int i = 0; i < 1000; i++) { // The leak checker of the sanitizer looks.
        CHECK(prompt_of(NS + "{% set ns.x = ns %}{% set ns.y = 'a' * 10000 %}alive") == "alive");
    }
}

// What of a request reaches the template (tools, chat_template_kwargs) is as deep as its sender likes.
static void test_deep_json() {
    check::begin("values of a request that are deeper than the stack");
    const size_t n       = std::stoul(DEEP);
    const auto   read_in = [](const std::string & text) {
        std::string err;
        template_run::on_small_stack([&] {
            const common_json json = common_json::parse(text);
            jinja::context    context("");
            try {
                dqrelo_template_scope scope;
                jinja::global_from_json(context, json, true);
            } catch (const std::exception & e) {
                err = e.what();
            }
        });
        return err;
    };
    const std::string objects = "{\"x\":" + nested(n, "{\"x\":", "1", "}") + "}";
    const std::string lists   = "{\"x\":" + nested(n, "[", "1", "]") + "}";
    const std::string both    = "{\"x\":" + nested(n / 2, "[{\"x\":", "1", "}]") + "}";
    for (const std::string & text : { objects, lists, both }) {
        const std::string err = read_in(text);
        CHECK(err.find(STACK) != std::string::npos && err.find('\n') == std::string::npos);
    }
    CHECK(read_in("{\"x\":" + nested(100, "[{\"x\":", "1", "}]") + "}").empty());
}

static void test_no_scope() {
    check::begin("without a scope nothing is counted");
    const std::string source  = "{{ 'a' * 2000000 }}";
    const auto        program = jinja::parse_from_tokens(jinja::lexer().tokenize(source));
    CHECK(template_run::render(program, source, 1).size() == 2000000);
}

int main() {
    test_cases("deep sources: the stack", deep_sources(3800, STACK));
    test_cases("deep sources: the levels", deep_sources(600, STACK));
    test_cases("recursions", recursions());
    test_cases("deep values", deep_values(), many_steps());
    test_cases("growth", growth());
    test_cases("arithmetic", arithmetic());
    test_enough();
    test_freed();
    test_deep_json();
    test_no_scope();
    return check::finish();
}
