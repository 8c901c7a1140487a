"""Calls into the native module, and what ends a process while they run: fork, and the interpreter's exit.

A forked child has none of the threads that the native module works with, so a call there would wait for them for ever.
And a daemon thread that comes back from the native module after the interpreter began to end takes the whole process with
it, so at exit running calls are told to stop, and waited for.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from dqrelo_gguf.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class _Owner:
    pid: int
    stop: Callable[[], None]


class _Calls:
    """Threads that are in a call."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._changed = threading.Condition()
        self._threads: set[int] = set()

    def begin(self) -> bool:
        """False for a call inside a call, which does not count."""
        with self._changed:
            is_outer = threading.get_ident() not in self._threads
            self._threads.add(threading.get_ident())
            return is_outer

    def end(self) -> None:
        with self._changed:
            self._threads.discard(threading.get_ident())
            self._changed.notify_all()

    def wait_for_others(self) -> None:
        own = {threading.get_ident()}
        with self._changed:
            self._changed.wait_for(lambda: not self._threads - own)


_owners: weakref.WeakKeyDictionary[Any, _Owner] = weakref.WeakKeyDictionary()
_calls = _Calls()


def register(owner: object, stop: Callable[[], None]) -> None:
    """Makes `owner` this process's.

    Args:
        owner: has methods that are a native_call.
        stop: makes its running calls end soon; called at the interpreter's exit.
    """
    _owners[owner] = _Owner(os.getpid(), stop)


def is_own(owner: object) -> bool:
    """Whether it was registered in this process, not before a fork."""
    return _owners[owner].pid == os.getpid()


def native_call(method: Callable[P, R]) -> Callable[P, R]:
    """A method that calls the native module: refused in a forked child, ended before the interpreter is."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not is_own(args[0]):
            raise InputError("this runtime was made before a fork, in the parent process. Make one in this process")
        is_outer = _calls.begin()
        try:
            return method(*args, **kwargs)
        finally:
            if is_outer:
                _calls.end()

    return call


def end_calls() -> None:
    """Before the interpreter ends: daemon threads leave the native module."""
    for owner in list(_owners.values()):
        if owner.pid == os.getpid():
            owner.stop()
    _calls.wait_for_others()


atexit.register(end_calls)
if hasattr(os, "register_at_fork"):
    # Calls of the parent's other threads do not end in the child.
    os.register_at_fork(after_in_child=_calls.reset)
