"""Starts dqrelo-server so that it does not outlive the process that wanted it: `python -m dqrelo_gguf.integrations.fleet.child PID ARG...`.

A replica that is killed outright cannot end its server. On Linux the kernel does it then; elsewhere Ray ends the children of workers that it ends itself.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h; it stays across execve.


def main() -> None:
    """Does not return."""
    parent, args = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # It ended before the kernel was asked.
            sys.exit(1)
    os.execv(sys.executable, [sys.executable, "-m", "dqrelo_gguf.cli.server", *args])  # noqa: S606 - the same process goes on


if __name__ == "__main__":
    main()
