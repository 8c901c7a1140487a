"""Conversations through a template that a stranger wrote: the text that it makes, and one line for whatever it does else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate import chat
from dqrelo_gguf.evaluate.chat import Renderer, rendered

HELLO = [{"role": "user", "content": "Hi\nthere"}]


@dataclass
class Model:
    """What `rendered` asks of a runtime."""

    chat_template: str | None
    path: str = "ft.gguf"
    start_token: int | None = 1
    names: dict[int, str] = field(default_factory=lambda: {1: "<s>", 2: "</s>"})

    def detokenize(self, tokens: np.ndarray, *, special: bool) -> str:
        assert special
        return self.names[int(tokens[0])]


def text_of(template: str, messages: list[dict[str, Any]] = HELLO, *, for_answer: bool = False) -> str:
    (text,) = rendered(Model(template), [messages], 2, for_answer=for_answer)  # type: ignore[arg-type]
    return text


def test_a_template_gets_what_llama_cpp_gives_it() -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}\n[{{ m.role }}]{{ m['content'] | trim }}{{ eos_token }}\n"
        "{% endfor %}\n{% if add_generation_prompt %}[answer]{% endif %}"
    )
    assert text_of(template) == "<s>[user]Hi\nthere</s>\n"
    assert text_of(template, for_answer=True).endswith("[answer]")
    assert text_of("{% for m in messages %}{% break %}{% endfor %}{{ messages | tojson }}").startswith('[{"role"')


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only\none line') }}", "failed: only one line$"),
        ("{% for %}", "failed: Expected an expression"),
        ("{{ messages[0].content.__class__.__mro__ }}", "failed: access to attribute"),
        ("{{ 1 / 0 }}", "failed: division by zero"),
        ("{{ 'x' * 3000000000 }}", "failed: MemoryError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "failed: maximum recursion depth"),
        ("{{ 'x' * 20000000 }}", "have more than 16777216 characters"),
    ],
)
def test_a_template_that_fails_is_one_line(template: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        text_of(template)


def test_a_template_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "TIMEOUT_S", 3)
    with pytest.raises(InputError, match=r"ft\.gguf: its chat template failed: took more than 3 s"):
        text_of("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")


def test_a_renderer_goes_on_after_a_failure_and_after_its_process_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    template = (
        "{% if messages[0].content == 'loop' %}"
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        "{% endif %}{{ 1 / (messages[0].content | int) }}{{ eos_token }}"
    )
    with Renderer("ft.gguf", template, bos="", eos="</s>") as renderer:

        def ask(content: str) -> str:
            (text,) = renderer.texts([[{"role": "user", "content": content}]])
            return text

        assert ask("2") == "0.5</s>"
        with pytest.raises(InputError, match="division by zero"):
            ask("0")
        assert ask("4") == "0.25</s>"
        with monkeypatch.context() as patched:
            patched.setattr(chat, "TIMEOUT_S", 1)
            with pytest.raises(InputError, match="took more than 1 s"):
                ask("loop")
        assert ask("8") == "0.125</s>"
