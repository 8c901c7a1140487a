"""dqrelo: all commands of the package under one name."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from dqrelo_gguf.cli import run

PROG = "dqrelo"
SHELLS = ("bash", "zsh", "tcsh")  # Those that shtab writes completions for.

# A subcommand, its module in this folder, and what it does.
COMMANDS = {
    "convert": ("convert", "write what a fine-tune changed over its base as a delta"),
    "inspect": ("inspect", "show what a delta holds, and check it"),
    "merge": ("merge", "add deltas to their base: a plain GGUF, or one delta"),
    "eval": ("eval", "measure what deltas keep of their fine-tune"),
    "push": ("push", "upload a delta to the Hugging Face Hub, with a model card"),
    "cache": ("cache", "show and bound what was fetched from buckets and web servers"),
    "lm-eval": ("lm_eval", "run lm-evaluation-harness on a base and its deltas"),
    "bench": ("bench", "measure tokens a second of a base and its deltas"),
    "serve": ("server", "run llama-server with deltas; every argument is llama-server's"),
    "demo": ("demo", "convert an example, serve it and ask it"),
}

_HANDED_ON = {"server", "lm_eval"}  # Modules whose arguments are another program's.


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args and args[0] in COMMANDS:
        # What follows is the command's alone: some hand it on to another program.
        code: int = importlib.import_module(f"{__package__}.{COMMANDS[args[0]][0]}").main(args[1:])
        return code
    parser = _parser()
    options = parser.parse_args(args)
    if not options.version and options.completion is None:
        parser.error(f"give a command, one of {', '.join(COMMANDS)}")
    return run(_print_version if options.version else lambda: _print_completion(options.completion), PROG)


def _parser(with_options: bool = False) -> argparse.ArgumentParser:
    """The parser of the words before a command's own; with the commands' options, where they have a parser, for completion."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Deltas of fine-tunes for llama.cpp: make them, measure them, serve them.",
        epilog=f"`{PROG} COMMAND --help` tells a command's options. Each is also a program of its own: {PROG}-convert, "
        f"..., {PROG}-server.",
    )
    parser.add_argument("--version", action="store_true", help="print the versions and the instruction set in use")
    parser.add_argument(
        "--completion",
        choices=SHELLS,
        metavar="SHELL",
        help=f'print the completion script for {", ".join(SHELLS)}: eval "$({PROG} --completion bash)"',
    )
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, (module, text) in COMMANDS.items():
        parents = []
        if with_options and module not in _HANDED_ON:
            command = importlib.import_module(f"{__package__}.{module}")
            parents.append(command._parser())  # noqa: SLF001 - the commands of this folder are one program here
        commands.add_parser(name, help=text, add_help=False, parents=parents)
    return parser


def _print_version() -> None:
    from dqrelo_gguf.native import core
    from dqrelo_gguf.version import __version__

    machine = core.machine()
    print(f"dqrelo-gguf {__version__}")
    print(f"llama.cpp {machine['build_commit']}")
    print(f"instruction set {machine['isa']}; of llama.cpp's CPU backend: {machine['cpu_features'] or 'the baseline'}")


def _print_completion(shell: str) -> None:
    import shtab

    print(shtab.complete(_parser(with_options=True), shell=shell))


if __name__ == "__main__":
    sys.exit(main())
