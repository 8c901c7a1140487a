"""Chat templates that try to kill or to hold whoever runs them, each with a word of the error that it must get."""

from __future__ import annotations

NS = "{% set ns = namespace(x=1) %}"


def nested(n: int, opening: str, inner: str, closing: str) -> str:
    return opening * n + inner + closing * n


def doubled(start: str, following: str) -> str:
    return f"{NS}{{% set ns.x = {start} %}}{{% for i in range(60) %}}{{% set ns.x = {following} %}}{{% endfor %}}"


# Break a bound whatever the messages are.
HOSTILE = {
    "parentheses": ("{{ " + nested(3800, "(", "1", ")") + " }}", "too deeply"),
    "lists": ("{{ " + nested(60000, "[", "1", "]") + " }}", "too deeply"),
    "sum": ("{{ 1" + " + 1" * 60000 + " }}", "too deeply"),
    "ifs": (nested(9000, "{% if 1 %}", "1", "{% endif %}"), "too deeply"),
    "elifs": ("{% if 0 %}" + "{% elif 0 %}" * 9000 + "{% endif %}", "too deeply"),
    "macro": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "too deeply"),
    "macros": (
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
        "too deeply",
    ),
    "itself": (NS + "{% set ns.x = ns %}{{ ns|tojson }}", "too deeply"),
    "list-of-itself": ("{% set l = [1] %}{% set _ = l.append(l) %}{{ l }}", "too deeply"),
    "range": ("{% for i in range(1000000000) %}{% endfor %}", "too many values"),
    "loops": (
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "runs too long",
    ),
    "text": (doubled("'a'", "ns.x ~ ns.x"), "too much text"),
    "list": (doubled("[1]", "ns.x + ns.x"), "too much text"),
    "tree": (doubled("1", "[ns.x, ns.x]") + "{{ ns.x|tojson }}", "the chat template"),
    "repeat": ("{{ 'a' * 9223372036854775807 }}", "too much text"),
    "replace": ("{% set t = 'a' * 100000 %}{{ t|replace('a', t) }}", "too much text"),
    "indent": ("{{ 'a'|indent(1000000000000, true) }}", "too much text"),
    "search": (
        "{% set t = 'a' * 1000000 %}{% for i in range(99999) %}{% if 'b' in t %}{% endif %}{% endfor %}",
        "runs too long",
    ),
    "prompt": ("{% set t %}" + "a" * 1000 + "{% endset %}{{ t * 2000 }}", "makes a prompt of"),
    "source": ("a" * 300000, "is too long"),
}

# Wrong in another way: errors, not bounds.
WRONG = {
    "syntax": ("{{ 1 +", "Unexpected EOF"),
    "raises": ("{{ raise_exception('no such luck') }}", "no such luck"),
    "raises-lines": ("{{ raise_exception('one\ntwo' * 1000) }}", "one two"),
    "division": ("{{ 4 is divisibleby(0) }}", "division by zero"),
    "unpacking": (
        "{% set l = [[1, 2], [3, 4]] %}{% for a, b in l %}{% set _ = l[1].pop() if l[1][1] else 0 %}{% endfor %}",
        "chat template",
    ),
}

# Harmless, until a message says "break": the delta loads, and the request fails.
ON_REQUEST = "{% if messages[-1].content == 'break' %}{% for i in range(1000000000) %}{% endfor %}{% endif %}ready"

# Looks at all messages for each of them.
QUADRATIC = (
    "{% for m in messages %}{% set ns = namespace(n=0) %}{% for o in messages[:8] %}"
    "{% if o.role == 'user' %}{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}"
    "<|{{ m.role }}|>{{ m.content|trim }}{{ eos_token }}\n{% endfor %}"
)
