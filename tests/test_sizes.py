"""Numbers of bytes for people."""

from __future__ import annotations

from dqrelo_gguf.sizes import bytes_text


def test_bytes_for_people() -> None:
    assert [bytes_text(n) for n in (0, 1023, 1024, 1536 * 1024, 5 * 1024**3)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 MiB",
        "5.0 GiB",
    ]
