"""Renders conversations by a Jinja template: a program of its own, JSON in and out, within bounds (chat.py starts it).

A request is a line of stdin, and its answer a line of stdout.
"""

from __future__ import annotations

import functools
import json
import math
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from jinja2 import Template

MEMORY_BYTES = 2 << 30
CPU_S = 100  # of a request
TEXT_CHARS = 1 << 24  # of all conversations of a request together


def main() -> int:
    """Reads requests from stdin until it ends, and writes texts or an error for each."""
    for line in sys.stdin:
        request = json.loads(line)
        _bound()
        try:
            answer: dict[str, Any] = {"texts": _texts(request)}
        except (Exception, RecursionError, MemoryError) as e:  # noqa: BLE001 - whatever a stranger's program raises
            answer = {"error": str(e) or type(e).__name__}
        json.dump(answer, sys.stdout)
        print(flush=True)
    return 0


def _bound() -> None:
    """Bounds what the next request takes."""
    try:
        import resource
    except ImportError:  # There is no such module on Windows; the caller's clock remains.
        return
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    seconds = math.ceil(time.process_time()) + CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (seconds if most == resource.RLIM_INFINITY else min(seconds, most), most))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


@functools.cache
def _template(source: str) -> Template:
    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def fail(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = fail
    return environment.from_string(source)


def _texts(request: dict[str, Any]) -> list[str]:
    from jinja2.exceptions import TemplateError

    template = _template(request["template"])
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
