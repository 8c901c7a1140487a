"""Conversations through a fine-tune's chat template.

A template is a stranger's program, and nothing in Jinja bounds what it computes: it runs in a process of its own, with
bounds on time and memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from dqrelo_gguf.errors import InputError, printable, raise_os_error
from dqrelo_gguf.file.open_file import require_file
from dqrelo_gguf.runtime.session import Runtime

Conversation = list[dict[str, Any]]

TIMEOUT_S = 120
_MODULE = "dqrelo_gguf.evaluate.render"


def check_messages(messages: Any, where: str) -> Conversation:
    """The messages of a conversation.

    Raises:
        InputError: they are no list of objects with texts `role` and `content`.
    """
    is_good = isinstance(messages, list) and messages
    if not is_good or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    ):
        raise InputError(f"{where}: 'messages' must be a list of objects with the texts 'role' and 'content'")
    return list(messages)


def read_bytes(path: Path) -> bytes:
    """A file.

    Raises:
        InputError: it is no regular file, or cannot be read.
    """
    require_file(path)
    try:
        return path.read_bytes()
    except OSError as e:
        raise_os_error(e, str(path))


def read_lines(path: Path, raw: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Where each line of a JSONL file is, and its object; empty lines are left out.

    Raises:
        InputError: a line is no JSON object.
    """
    out = []
    for i, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}: line {i}"
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise InputError(f"{where} is no JSON") from e
        if not isinstance(item, dict):
            raise InputError(f"{where} is no JSON object")
        out.append((where, item))
    if not out:
        raise InputError(f"{path}: is empty, expected a JSON object a line")
    return out


def read_conversations(path: Path, raw: bytes) -> list[Conversation]:
    """The `messages` of each line."""
    return [check_messages(item.get("messages"), where) for where, item in read_lines(path, raw)]


def rendered(
    rt: Runtime,
    conversations: list[Conversation],
    end: int | None,
    *,
    for_answer: bool = False,
    template: str | None = None,
) -> list[str]:
    """The text of each conversation, by the template of the fine-tune.

    Args:
        rt: the fine-tune.
        conversations: to render.
        end: its end token.
        for_answer: end where the answer begins.
        template: in place of the one that the runtime's model has.

    Raises:
        InputError: it has no template, or the template fails.
    """
    template = template or rt.chat_template
    if template is None:
        raise InputError(f"{rt.path}: has no chat template, but 'messages' need one. Give 'prompt' or plain text")
    bos, eos = (
        "" if token is None else rt.detokenize(np.array([token], np.int32), special=True)
        for token in (rt.start_token, end)
    )
    with Renderer(rt.path, template, bos=bos, eos=eos) as renderer:
        return renderer.texts(conversations, for_answer=for_answer)


class Renderer:
    """A chat template that renders conversations, in a process of its own that waits for them. A context manager.

    Args:
        where: the file that the template is of; errors name it.
        template: Jinja.
        bos: the text of the token that begins a text.
        eos: the text of the token that ends one.
    """

    def __init__(self, where: str, template: str, *, bos: str, eos: str) -> None:
        self._where = where
        self._about = {"template": template, "bos_token": bos, "eos_token": eos}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process; a later call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def texts(self, conversations: list[Conversation], *, for_answer: bool = False) -> list[str]:
        """The text of each conversation.

        Args:
            conversations: to render.
            for_answer: end where the answer begins.

        Raises:
            InputError: the template fails.
        """
        request = {**self._about, "conversations": conversations, "for_answer": for_answer}
        answer = self._ask(json.dumps(request).encode() + b"\n")
        if "error" in answer:
            raise InputError(f"{self._where}: its chat template failed: {printable(str(answer['error']))[:200]}")
        return [str(text) for text in answer["texts"]]

    def _ask(self, line: bytes) -> dict[str, Any]:
        process = self._process = self._process or subprocess.Popen(
            [sys.executable, "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        is_too_long = threading.Event()

        def end() -> None:
            is_too_long.set()
            process.kill()

        timer = threading.Timer(TIMEOUT_S, end)
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            raw = process.stdout.readline()
        except BrokenPipeError:
            raw = b""
        except BaseException:  # The answer that may still come is nobody's.
            self.close()
            raise
        finally:
            timer.cancel()
        if raw.endswith(b"\n"):
            answer: dict[str, Any] = json.loads(raw)
            return answer
        code = process.wait()
        self.close()
        return {"error": f"took more than {TIMEOUT_S} s" if is_too_long.is_set() else f"ended with {code}"}
