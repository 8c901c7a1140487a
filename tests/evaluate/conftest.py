"""A runtime of a fine-tune."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dqrelo_gguf.runtime.session import Runtime
from tests.support.trio import Trio


@pytest.fixture(scope="module")
def tuned(trio: Trio) -> Iterator[Runtime]:
    with Runtime(trio.tuned, n_threads=1) as rt:
        yield rt
