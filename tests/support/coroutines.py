"""Coroutines in tests."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

FOREVER = 60.0  # Seconds that are more than any test waits.
T = TypeVar("T")


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in a thread of its own: this one has a running loop after playwright was used in it."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, work).result()
