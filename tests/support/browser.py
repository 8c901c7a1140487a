"""Headless Chromium: a page's document and console after its scripts have run, and how it looks. It has no network."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_CONSOLE = re.compile(r"^\[.*:CONSOLE(?:\(\d+\)|:\d+)\] (.*)$", re.MULTILINE)


def browser() -> str | None:
    """The program, None where there is none."""
    return next((found for name in BROWSERS if (found := shutil.which(name)) is not None), None)


@dataclass(frozen=True)
class Loaded:
    """A page that was loaded.

    Args:
        document: its HTML after the scripts.
        console: what was logged: errors, failed loads, violations of the policy.
    """

    document: str
    console: list[str]


def load(page: Path, width: int = 1200) -> Loaded:
    """Runs a page and reads what became of it."""
    done = _run(page, "--dump-dom", f"--window-size={width},1000")
    return Loaded(done.stdout, _CONSOLE.findall(done.stderr))


def screenshot(page: Path, out: Path, width: int, height: int, *, is_dark: bool = False) -> None:
    """Draws a page into a PNG file."""
    scheme = ["--blink-settings=preferredColorScheme=0"] if is_dark else []
    _run(page, f"--screenshot={out}", f"--window-size={width},{height}", "--hide-scrollbars", *scheme)


def _run(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    program = browser()
    assert program is not None
    fixed = [
        "--headless",
        "--no-sandbox",  # It does not run as root otherwise, as in containers; the page is the test's own.
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--enable-logging=stderr",
        "--virtual-time-budget=10000",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={page.parent / 'browser'}",
    ]
    return subprocess.run(
        [program, *fixed, *options, page.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
