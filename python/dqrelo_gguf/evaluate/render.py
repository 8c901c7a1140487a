"""Renders conversations by a Jinja template: a program of its own, JSON in and out, within bounds (chat.py starts it)."""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

MEMORY_BYTES = 2 << 30
CPU_S = 100
TEXT_CHARS = 1 << 24  # of all conversations together


def main() -> int:
    """Reads a request from stdin, writes texts or an error."""
    request = json.load(sys.stdin)
    _bound()
    try:
        answer: dict[str, Any] = {"texts": _texts(request)}
    except (Exception, RecursionError, MemoryError) as e:  # noqa: BLE001 - whatever a stranger's program raises
        answer = {"error": str(e) or type(e).__name__}
    json.dump(answer, sys.stdout)
    return 0


def _bound() -> None:
    try:
        import resource
    except ImportError:  # There is no such module on Windows; the caller's clock remains.
        return
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _texts(request: dict[str, Any]) -> list[str]:
    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def fail(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = fail
    template = environment.from_string(request["template"])
    texts, n_chars = [], 0
    for messages in request["conversations"]:
        text = template.render(
            messages=messages,
            add_generation_prompt=request["for_answer"],
            bos_token=request["bos_token"],
            eos_token=request["eos_token"],
        )
        n_chars += len(text)
        if n_chars > TEXT_CHARS:
            raise TemplateError(f"the conversations have more than {TEXT_CHARS} characters")
        texts.append(text)
    return texts


if __name__ == "__main__":
    sys.exit(main())
