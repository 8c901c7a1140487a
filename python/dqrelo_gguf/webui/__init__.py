"""The page of the server: models side by side, and its deltas. `source/` is put together into `site/index.html` by build.py."""

from __future__ import annotations

from pathlib import Path

SITE = Path(__file__).resolve().parent / "site"  # The server hands out every file in it.
