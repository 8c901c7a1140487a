// Mutations of chat templates: nothing crashes, and what breaks a bound says so. Under sanitizers.
//
// test-template-fuzz [N_RUNS [SEED [FILE...]]]: files are templates to mutate in place of those below.
#include "support/check.h"
#include "support/template-run.h"

#include <cctype>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

static const std::vector<std::string> TEMPLATES = {
    "{%- for m in messages -%}\n<|{{ m.role }}|>\n{{ m['content'] | trim }}{{ eos_token }}\n{%- endfor -%}\n{% if add_generation_prompt "
    "%}<|assistant|>{% endif %}",
    "{% macro show(x, n=0) %}{% if x is mapping %}{% for k, v in x|items %}{{ k }}: {{ show(v, n + 1) }}{% endfor %}{% elif x is string "
    "%}{{ x|replace('a', "
    "'bc')|upper }}{% elif x is iterable %}[{% for i in x %}{{ show(i, n + 1) }}{{ ', ' if not loop.last else '' }}{% endfor %}]{% else "
    "%}{{ x|tojson(indent=2) "
    "}}{% endif %}{% endmacro %}{{ show(messages) }}{{ show(tools|default([])) }}",
    "{% set ns = namespace(found=false, last=-1, all=[]) %}{% for m in messages[::-1] %}{% set i = messages|length - 1 - loop.index0 %}{% "
    "if m.role == 'user' and not "
    "ns.found %}{% set ns.found = true %}{% set ns.last = i %}{% endif %}{% set _ = ns.all.append((i, m.content.split('e')[0])) %}{% "
    "endfor %}{{ ns.all|sort|string ~ "
    "ns.last }}{{ 'x' * (ns.last + 2) }}{{ range(3, 20, 4)|join('-') }}{{ ns.all|map(attribute=1)|list|tojson }}",
    "{% set d = {'b': 1, 'a': [1, 2.5, none, 'é'], 3: (1, 2)} %}{{ d|dictsort }}{{ d.keys()|list }}{{ d.get('a')[1:3] }}{% call(x) "
    "show('a') %}{{ x }}{% endcall %}"
    "{% macro show(y) %}{{ caller(y) }}{% endmacro %}{% filter indent(2) %}a\nb{% endfilter %}{{ 'a{}b'.format(3) }}{{ "
    "d.a|reject('none')|list|length }}",
};

// What mutations put in place of a word, before the end of an expression, and anywhere.
static const std::vector<std::string> VALUES = {
    "0",
    "1",
    "9223372036854775807",
    "1000000",
    "99",
    "none",
    "true",
    "messages",
    "ns",
    "d",
    "undefined_name",
    "loop",
    "m",
    "x",
    "range(99)",
    "(-9223372036854775807 - 1)",
    "(0/0)",
    "[messages, 1]",
    "{'a': messages}",
    "namespace(x=1)",
    "('x' * 9999)",
    "(messages, 1)",
};

static const std::vector<std::string> FILTERS = {
    "|tojson",
    "|string",
    "|length",
    "|sort",
    "|sort(reverse=true)",
    "|list",
    "|join",
    "|join('é')",
    "|first",
    "|last",
    "|min",
    "|max",
    "|reverse",
    "|map(attribute='role')",
    "|map(attribute=0)",
    "|selectattr('role', 'equalto', 'user')",
    "|select('in', messages)",
    "|rejectattr('role')",
    "|replace('e', 'ee')",
    "|replace('', 'x')",
    "|indent(9)",
    "|indent('e', true, true)",
    "|dictsort",
    "|items",
    "|default(messages)",
    "|int",
    "|float",
    "|abs",
    "|upper",
    "|title",
    "|capitalize",
    "|trim('e')",
    "|unique",
    "|safe",
    "|tojson(indent=3, ensure_ascii=true)",
    ".append(messages)",
    ".pop()",
    ".pop(0)",
    ".split('e')",
    ".rsplit('e', 1)",
    ".items()",
    ".get('role')",
    ".format(messages)",
    "[::-1]",
    "[0]",
    "[1:]",
    "[:-1:2]",
    " * 99",
    " * 99999999",
    " ~ messages",
    " + messages",
    " is divisibleby(0)",
    " % 0",
    " in messages",
    " == messages",
    " is sameas(messages)",
    " if messages else 1",
};

static const std::vector<std::string> PIECES = {
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "'",
    "\"",
    "\\",
    ",",
    ":",
    ".",
    "|",
    "~",
    "-",
    "\xff",
    "\xc3",
    "é",
    "\r\n",
    "{% for x in messages %}{{ x }}{% endfor %}",
    "{% for x in range(99999999) %}{% endfor %}",
    "{% set ns = namespace(x=1) %}{% set ns.x = ns %}",
    "{% set m = messages %}{% set _ = m.append(m) %}",
    "{% macro show(x) %}{{ show(x) }}{% endmacro %}{{ show(1) }}",
    "{% break %}",
    "{{ messages.pop() }}",
    "{% set messages = 1 %}",
    "{% set messages[0].content = none %}",
    "{% set x %}{{ messages }}{% endset %}",
    "{% if x %}",
    "{% endif %}",
    "{% endfor %}",
};

// Returns a template in pieces: text, and the words and signs of expressions and statements.
static std::vector<std::string> tokens_of(const std::string & text) {
    std::vector<std::string> tokens;
    bool                     inside = false;
    for (size_t i = 0; i < text.size();) {
        const std::string two     = text.substr(i, 2);
        const bool        is_edge = two == "{{" || two == "{%" || two == "}}" || two == "%}";
        size_t            n       = is_edge ? 2 : 1;
        if (is_edge) {
            inside = two[0] == '{';
        } else if (!inside) {
            n = std::min(text.find("{", i + 1), text.size()) - i;
        } else {
            while (std::isalnum((unsigned char) text[i]) && i + n < text.size() && std::isalnum((unsigned char) text[i + n])) {
                n++;
            }
        }
        tokens.push_back(text.substr(i, n));
        i += n;
    }
    return tokens;
}

static bool is_word(const std::string & token) {
    return std::isalnum((unsigned char) token[0]) != 0;
}

// Most mutations keep the syntax: a word for a word, another filter, a part of another template between two of its parts.
static std::string mutated(const std::vector<std::string> & templates, std::mt19937 & rng) {
    const auto below  = [&](size_t n) { return n == 0 ? 0 : (size_t) (rng() % n); };
    const auto chosen = [&](const std::vector<std::string> & from) { return from[below(from.size())]; };
    auto       tokens = tokens_of(chosen(templates));
    for (size_t n = 1 + below(5); n > 0 && !tokens.empty(); n--) {
        const size_t at = below(tokens.size());
        switch (below(8)) {
            case 0:
            case 1:
            case 2:
                if (is_word(tokens[at])) {
                    const auto others = tokens_of(chosen(templates));
                    const auto other  = chosen(below(2) == 0 ? others : VALUES);
                    tokens[at]        = is_word(other) || below(8) == 0 ? other : tokens[at];
                }
                break;
            case 3:
            case 4:
                if (tokens[at] == "}}") {
                    tokens.insert(tokens.begin() + (ptrdiff_t) at, chosen(FILTERS));
                }
                break;
            case 5: tokens[at] = tokens[at] == "%}" || tokens[at] == "}}" ? tokens[at] + chosen(templates) : tokens[at]; break;
            case 6: tokens[at] = tokens[at] == "%}" || tokens[at] == "}}" ? tokens[at] + chosen(PIECES) : tokens[at]; break;
            default: tokens[at] = below(4) == 0 ? chosen(PIECES) : tokens[at];
        }
    }
    std::string text;
    for (const auto & token : tokens) {
        text += token;
    }
    return text.substr(0, 60000);
}

int main(int argc, char ** argv) {
    const int                n_runs = argc > 1 ? atoi(argv[1]) : 1000;
    std::mt19937             rng(argc > 2 ? (unsigned) atoi(argv[2]) : 1);
    std::vector<std::string> templates;
    for (int i = 3; i < argc; i++) {
        std::ifstream file(argv[i], std::ios::binary);
        templates.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    templates = templates.empty() ? TEMPLATES : templates;

    dqrelo_template_bounds bounds; // They are small, so that many are broken, and soon.
    bounds.steps  = { 200000, 0, 0 };
    bounds.bytes  = { 4000000, 0, 0 };
    bounds.values = { 20000, 0, 0 };

    check::begin("mutated templates");
    int n_good = 0, n_broken = 0, n_error = 0;
    for (int i = 0; i < n_runs; i++) {
        const std::string source = mutated(templates, rng);
        if (const char * path = std::getenv("DQRELO_FUZZ_LAST")) { // The file can be looked at after a crash.
            std::ofstream(path, std::ios::binary) << source;
        }
        const std::string prompt = template_run::prompt_of(source, 3, bounds);
        n_broken += prompt.rfind("error: the chat template", 0) == 0;
        n_error += prompt.rfind("error: ", 0) == 0 && prompt.rfind("error: the chat template", 0) != 0;
        n_good += prompt.rfind("error: ", 0) != 0;
    }
    printf("  %d runs: %d prompts, %d errors, %d broken bounds\n", n_runs, n_good, n_error, n_broken);
    CHECK(n_good + n_error + n_broken == n_runs);
    CHECK(n_runs < 100 || (n_good > 0 && n_error > 0 && n_broken > 0));
    return check::finish();
}
