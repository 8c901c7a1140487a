"""Conversations through a fine-tune's chat template.

A template is a stranger's program, and nothing in Jinja bounds what it computes: it runs in a process of its own, with
bounds on time and memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def rendered(rt: Runtime, conversations: list[Conversation], end: int | None, *, for_answer: bool = False) -> list[str]:
    """The text of each conversation, by the template of the fine-tune.

    Args:
        rt: the fine-tune.
        conversations: to render.
        end: its end token.
        for_answer: end where the answer begins.

    Raises:
        InputError: it has no template, or the template fails.
    """
    template = rt.chat_template
    if template is None:
        raise InputError(f"{rt.path}: has no chat template, but 'messages' need one. Give 'prompt' or plain text")
    bos, eos = (
        "" if token is None else rt.detokenize(np.array([token], np.int32), special=True)
        for token in (rt.start_token, end)
    )
    request = {
        "template": template,
        "conversations": conversations,
        "for_answer": for_answer,
        "bos_token": bos,
        "eos_token": eos,
    }
    return _run(rt.path, request)


def _run(where: str, request: dict[str, Any]) -> list[str]:
    command = [sys.executable, "-m", _MODULE]
    try:
        done = subprocess.run(
            command, input=json.dumps(request).encode(), capture_output=True, timeout=TIMEOUT_S, check=False
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else {"error": f"ended with {done.returncode}"}
    except subprocess.TimeoutExpired:
        answer = {"error": f"took more than {TIMEOUT_S} s"}
    except ValueError:
        answer = {"error": "its output is no text"}
    if "error" in answer:
        raise InputError(f"{where}: its chat template failed: {printable(str(answer['error']))[:200]}")
    return [str(text) for text in answer["texts"]]
