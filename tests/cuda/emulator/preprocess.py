"""Rewrite CUDA source into C++ for cuemu.h: the three constructs that no macro can express.

  preprocess.py IN OUT    a file, or a directory with all .cu and .cuh below it; a file that would stay the same is not touched

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
NAME = r"(\w+)\s*((?:\[[^\]]*\]\s*)*)"
STATIC = re.compile(rf"__shared__\s+{ALIGN}([^;\[\]]+?)\s*\b{NAME}((?:,\s*{NAME})*);")


def blank(text: str) -> str:
    """Comments, strings and the backslashes of long macros as spaces of the same length, so that brackets can be counted."""
    text = text.replace("\\\n", " \n")
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
    kind, name, dimensions, others = match[1], match[2], match[3], match[4]
    if "," in re.sub(r"<.*>", "", kind):
        raise SystemExit(f"one variable a declaration, or arrays only: {match[0]}")
    names = [(name, dimensions), *re.findall(rf",\s*{NAME}", others)]
    return "".join(one_shared(kind, n, d.strip()) for n, d in names) + "\n" * match[0].count("\n")


def one_shared(kind: str, name: str, dimensions: str) -> str:
    reference = f"(&{name}){dimensions}" if dimensions else f"& {name}"
    whole = re.sub(r"\[(.*?)\]", r"[(\1)]", dimensions)  # A size may hold a ">".
    value = f"::cuemu::shared<{kind}{whole}>(&key_{name})"
    return f"static const char key_{name} = 0; {kind} {reference} = {value};"


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


def rewrite(source: Path, target: Path, name: str) -> None:
    text = f'#line 1 "{name}"\n' + convert(source.read_text())
    if not target.exists() or target.read_text() != text:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    if not source.is_dir():
        rewrite(source, target, str(source))
        return
    for file in sorted([*source.rglob("*.cu"), *source.rglob("*.cuh")]):
        inside = file.relative_to(source)
        # The name is the same on every machine, so that ccache hits.
        rewrite(file, target / inside, f"{source.name}/{inside}")


if __name__ == "__main__":
    main()
