"""The folder of models that make_llama_1b.py fills: options of the benchmarks that run on it, and its files."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from dqrelo_gguf.compress.blocks import n_cores
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.runtime.programs import program


def add_arguments(parser: argparse.ArgumentParser, base: str) -> None:
    """What every benchmark on such a folder is told; `base` is the name of the base that it takes by default."""
    parser.add_argument("--dir", type=Path, required=True, help="files of make_llama_1b.py")
    parser.add_argument("--base", type=Path, help=f"the base, in any quantisation (default: {base} in --dir)")
    parser.add_argument("--server", type=Path, help="llama-server of this project (default: the package's)")
    parser.add_argument("--threads", "-t", type=int, default=n_cores(), help="(default: all cores, %(default)s)")
    parser.add_argument("-o", "--output", choices=("md", "json"), default="md", help="(default: %(default)s)")
    parser.set_defaults(base_name=base)


def base_of(args: argparse.Namespace) -> Path:
    """The base to run."""
    found: Path = args.base or args.dir / args.base_name
    return found


def server_of(args: argparse.Namespace) -> Path:
    """The llama-server to run.

    Raises:
        InputError: none was given, and the package has none.
    """
    found: Path = args.server or program("llama-server")
    return found


def need_files(paths: Iterable[Path]) -> None:
    """Raises InputError if a file is missing."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"{missing[0]}: no such file. bench/make_llama_1b.py makes the models")


def by_name(deltas: Iterable[Path]) -> dict[str, Path]:
    """Delta files by the names that a server gives them."""
    return {path.name.removesuffix(fmt.SUFFIX): path for path in deltas}
