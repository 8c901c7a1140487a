"""dqrelo-server: starts the llama-server of this package with its page; every argument is llama-server's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from dqrelo_gguf.address.arguments import environment_with_paths, with_paths
from dqrelo_gguf.address.loading import CHANNEL, HELP, start_resolver, take_loading
from dqrelo_gguf.cli import run
from dqrelo_gguf.runtime.programs import program
from dqrelo_gguf.webui import SITE

PROG = "dqrelo-server"

_PATH = "--path"
_PATH_VARIABLE = "LLAMA_ARG_STATIC_PATH"  # The same option as an environment variable, which --path overrides.
_HELP = """dqrelo-server: llama-server with deltas, and a page of its own at / (fine-tunes side by side, the server's deltas).
--path DIR serves the files of DIR instead, --no-ui nothing. --model, --mmproj and --delta take addresses, too, such as
hf://owner/repo/file.gguf@revision: they are fetched before the server starts. These options are dqrelo-server's own:

{loading}
All others are llama-server's:
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. On POSIX it does not return: llama-server takes the process over."""
    args = list(sys.argv[1:] if argv is None else argv)
    return run(lambda: _serve(args), PROG)


def _serve(args: list[str]) -> int:
    path = str(program("llama-server"))
    args, loading = take_loading(args, os.environ)
    args, environment = with_paths(args), with_page(args, environment_with_paths(os.environ))
    environment.pop(CHANNEL, None)
    if {"-h", "--help", "--usage"}.intersection(args):
        print(_HELP.format(loading=HELP), flush=True)  # What is buffered would not survive exec.
    elif loading is not None:
        environment[CHANNEL] = start_resolver(loading)
    if os.name != "nt":  # On Windows, exec would start a second process and end this one at once.
        os.execve(path, [path, *args], environment)  # noqa: S606 - the same process goes on as llama-server
    return subprocess.run([path, *args], check=False, env=environment).returncode


def with_page(args: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """llama-server's environment, which names the page of this package where nobody named other files.

    Args:
        args: llama-server's arguments.
        environment: that of this process.
    """
    return dict(environment) if _PATH in args else {_PATH_VARIABLE: str(SITE), **environment}


if __name__ == "__main__":
    sys.exit(main())
