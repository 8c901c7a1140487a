"""The base and its fine-tunes: where the example is, and their conversion."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dqrelo_gguf.demo.steps import command, run_step
from dqrelo_gguf.errors import InputError

# The wheel has the example in this folder; a source run takes it from the checkout.
_BUNDLED = Path(__file__).resolve().parent / "tiny"
_IN_CHECKOUT = Path(__file__).resolve().parents[3] / "examples" / "tiny"


@dataclass
class Model:
    """A model as the server names it, and what it costs."""

    name: str
    path: Path
    convert_seconds: float
    checkpoint: Path

    @property
    def n_bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def checkpoint_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.checkpoint.glob("*.safetensors"))


def example() -> Path:
    """The folder of the example: base/ and two ft-*/."""
    return _BUNDLED if _BUNDLED.is_dir() else _IN_CHECKOUT


def convert(pair: Path, ratio: str, work: Path, console: Console) -> list[Model]:
    """The base becomes an F16 GGUF, every fine-tune beside it a delta.

    Args:
        pair: a folder with base/ and ft-*/, Hugging Face directories.
        ratio: size of a delta, as dqrelo-convert takes it.
        work: where the files go, with a log of each step.
        console: what is converted is said there.

    Raises:
        InputError: the folder has no base or no fine-tune.
        CommandError: a conversion failed.
    """
    checkpoints = sorted(pair.glob("ft-*"))
    if not (pair / "base").is_dir() or not checkpoints:
        raise InputError(f"{pair}: has no base/ and ft-*/, expected a base and its fine-tunes, a folder for each")
    from dqrelo_gguf._pin import conversion_script

    base = work / "base.gguf"
    console.print(f"base: {pair.name}/base -> {base.name}", markup=False)
    script = conversion_script()
    words = (sys.executable, script, pair / "base", "--outfile", base, "--outtype", "f16")
    models = [Model("base", base, run_step(work / "base.log", *words), pair / "base")]
    for checkpoint in checkpoints:
        name = checkpoint.name.removeprefix("ft-")
        delta = work / f"{name}.dq.gguf"
        console.print(f"fine-tune: {pair.name}/{checkpoint.name} -> {delta.name}, ratio {ratio}", markup=False)
        options = (base, checkpoint, "-o", delta, "--ratio", ratio, "--force")
        seconds = run_step(work / f"{name}.log", *command("convert"), *options)
        models.append(Model(name, delta, seconds, checkpoint))
    return models
