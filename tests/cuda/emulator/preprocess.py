"""Rewrite CUDA source into C++ for cuemu.h: the three constructs that no macro can express.

  preprocess.py IN OUT

  kernel<args><<<grid, block, bytes, stream>>>(...)   ->  ::cuemu::launch(grid, block, bytes, stream) << [&]() { kernel<args>(...); }
  extern __shared__ T name[];                         ->  T * name = (T *) ::cuemu::dynamic_shared();
  __shared__ T name[n];                               ->  one object a block, looked up by a key of its own

Lines keep their numbers.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

BRACKETS = {"(": ")", "[": "]", "{": "}"}
ALIGN = r"(?:(?:__align__|alignas)\s*\(\s*\d+\s*\)\s*)?"
DYNAMIC = re.compile(r"extern\s+__shared__\s+" + ALIGN + r"([^;\[\]]+?)\s*(\w+)\s*\[\s*\]\s*;")
STATIC = re.compile(r"__shared__\s+" + ALIGN + r"([^;\[\]]+?)\s*\b(\w+)\s*((?:\[[^\]]*\]\s*)*);")


def blank(text: str) -> str:
    """Comments and strings as spaces of the same length, so that brackets can be counted."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\''
    return re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.DOTALL)


def closing(text: str, at: int) -> int:
    """Index of the bracket that closes text[at]."""
    expected: list[str] = []
    for i in range(at, len(text)):
        if text[i] in BRACKETS:
            expected.append(BRACKETS[text[i]])
        elif expected and text[i] == expected[-1]:
            expected.pop()
            if not expected:
                return i
    raise SystemExit(f"line {text.count(chr(10), 0, at) + 1}: bracket is not closed")


def kernel_begin(text: str, end: int) -> int:
    """Where the kernel's name begins, with its template arguments, that ends before text[end]."""
    i = len(text[:end].rstrip())
    if text[i - 1] == ">":
        depth = 0
        while True:
            i -= 1
            depth += (text[i] == ">") - (text[i] == "<")
            if depth == 0:
                break
        i = len(text[:i].rstrip())
    while text[i - 1].isalnum() or text[i - 1] in "_:":
        i -= 1
    return i


def static_shared(match: re.Match[str]) -> str:
    kind, name, dimensions = match[1], match[2], match[3].strip()
    if "," in re.sub(r"<.*>", "", kind):
        raise SystemExit(f"one variable a declaration: {match[0]}")
    reference = f"(&{name}){dimensions}" if dimensions else f"& {name}"
    lines = "\n" * match[0].count("\n")
    return f"static const char key_{name} = 0; {kind} {reference} = ::cuemu::shared<{kind}{dimensions}>(&key_{name});{lines}"


def convert(text: str) -> str:
    text = DYNAMIC.sub(
        lambda m: f"{m[1]} * {m[2]} = ({m[1]} *) ::cuemu::dynamic_shared();" + "\n" * m[0].count("\n"), text
    )
    text = STATIC.sub(static_shared, text)
    while (at := blank(text).find("<<<")) >= 0:
        plain = blank(text)
        name = kernel_begin(plain, at)
        end = plain.index(">>>", at)
        arguments = plain.index("(", end)
        last = closing(plain, arguments)
        launch = f"::cuemu::launch({text[at + 3 : end]}) << [&]() {{ {text[name:at]}{text[end + 3 : last + 1]}; }}"
        text = text[:name] + launch + text[last + 1 :]
    return text


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f'#line 1 "{source}"\n' + convert(source.read_text()))


if __name__ == "__main__":
    main()
