"""Models that stand in for a fine-tune: a delta merged into its base, a rival's, or the fine-tune itself in few bits.

Each is a GGUF that any runtime reads, so that all are measured in the same way.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dqrelo_gguf._pin import conversion_script, gguf
from dqrelo_gguf.compress.blocks import open_blocks
from dqrelo_gguf.compress.budget import is_matrix
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.merge import MergeOptions, merge
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.convert.result import ConvertResult
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.layout import stripped_ne
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.probe.in_sequence import CALIBRATE
from dqrelo_gguf.probe.weigh import measured_importance
from dqrelo_gguf.runtime.programs import program
from support import rivals
from support.problems import Problem

BASE = "base"  # the base as it is
CONVERTED: dict[str, dict[str, Any]] = {  # names and the converter's options
    "best": {"method": "best"},
    "best-probe": {"method": "best", "importance": "probe"},
    "paper": {"method": "paper"},
}
CALIBRATED = (
    "best-self",
    "best-text",
)  # by text that the models write, and by other problems of the task with their answers
SMALL_TYPES = ("Q3_K_M", "Q2_K", "IQ2_XXS")
WITH_IMATRIX = ("IQ2_XXS",)  # llama-quantize makes them with an importance matrix only


@dataclass(frozen=True)
class Candidate:
    """A model to measure.

    Args:
        path: a GGUF.
        n_bytes: of what has to be stored beside the base, without metadata and padding; of a small type the whole model.
        seconds: that it took to make.
    """

    path: Path
    n_bytes: int
    seconds: float


@dataclass(frozen=True)
class Workshop:
    """Makes candidates.

    Args:
        work: folder of the files.
        n_threads: of everything.
    """

    work: Path
    n_threads: int

    def plain(self, model: Path) -> Path:
        """A checkpoint as an F16 GGUF, made by upstream's script; a GGUF as it is."""
        if model.is_file():
            return model
        out = self.work / f"{model.name}-f16.gguf"
        run_quietly(sys.executable, conversion_script(), model, "--outfile", out, "--outtype", "f16")
        return out

    def quantised(self, model: Path, type_name: str, imatrix: Path | None = None) -> Path:
        """A GGUF in another type of llama.cpp's."""
        out = self.work / f"{model.stem}-{type_name}.gguf"
        options = ["--imatrix", imatrix] if imatrix else []
        run_quietly(program("llama-quantize"), *options, model, out, type_name, self.n_threads)
        return out

    def small(self, tuned: Path, type_name: str, texts: list[Problem]) -> Candidate:
        """The fine-tune itself in few bits; `texts` make the importance matrix where the type needs one."""
        begun = time.monotonic()
        imatrix = self._imatrix(tuned, texts) if type_name in WITH_IMATRIX else None
        path = self.quantised(tuned, type_name, imatrix)
        n_bytes = sum(info.n_bytes for _, info in GgufModel(path).infos.values())
        return Candidate(path, n_bytes, time.monotonic() - begun)

    def _imatrix(self, tuned: Path, texts: list[Problem]) -> Path:
        text, out = self._text(texts), self.work / "imatrix.gguf"
        files = ["-m", tuned, "-f", text, "-o", out]
        run_quietly(program("llama-imatrix"), *files, "-c", "512", "-t", self.n_threads, "--no-ppl")
        return out

    def _text(self, texts: list[Problem]) -> Path:
        path = self.work / "problems.txt"
        path.write_text("".join(f"{p.prompt}{p.answer}\n" for p in texts), encoding="utf-8")
        return path

    def _questions(self, texts: list[Problem]) -> Path:
        """Questions alone: the fine-tune answers them itself."""
        path = self.work / "questions.jsonl"
        lines = [json.dumps({"messages": [{"role": "user", "content": p.question}]}) for p in texts]
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    def converted(self, base: Path, tuned: Path, method: str, ratio: Fraction) -> Candidate:
        """A delta of the converter's, merged.

        Raises:
            InputError: the ratio is too small for the method.
        """
        job = Job(base, tuned, self._delta, force=True, n_threads=self.n_threads)
        return self._merged(base, convert(job, Options(ratio=ratio, **CONVERTED[method]), weigh=measured_importance))

    def calibrated(self, base: Path, tuned: Path, method: str, ratio: Fraction, texts: list[Problem]) -> Candidate:
        """A delta of the converter's, calibrated, merged; its seconds are without the calibration but for the first ratio."""
        moments = self.work / f"{tuned.stem}-{base.stem}-{method}.safetensors"
        given: dict[str, Any] = {"calibration": moments}
        if not moments.exists():
            source = "self" if method == "best-self" else str(self._questions(texts))
            given = {"calibrate": source, "save_calibration": moments}
        job = Job(base, tuned, self._delta, force=True, n_threads=self.n_threads, **given)
        return self._merged(base, convert(job, Options(ratio=ratio), calibrate=CALIBRATE))

    @property
    def _delta(self) -> Path:
        return self.work / "candidate.dq.gguf"

    def _merged(self, base: Path, made: ConvertResult) -> Candidate:
        out = self.work / "candidate.gguf"
        merge(base, self._delta, out, MergeOptions(force=True, n_threads=self.n_threads))
        return Candidate(out, made.n_bytes, made.seconds)

    def rival(self, base: Path, tuned: Path, method: str, ratio: Fraction) -> Candidate:
        """A rival's delta, merged.

        Raises:
            InputError: the models do not have the same weights, or the fine-tune is neither F16 nor F32.
        """
        begun = time.monotonic()
        out = self.work / "candidate.gguf"
        ours, theirs = GgufModel(base), GgufModel(tuned)
        if dict(ours.shapes) != dict(theirs.shapes):
            raise InputError(f"{theirs.label}: has other weights than {ours.label}")
        shutil.copyfile(tuned, out)
        with open_blocks(self.n_threads) as blocks:
            changed = {
                name: stripped_ne(ne)
                for name, ne in ours.shapes.items()
                if not np.array_equal(ours.load(name, blocks), theirs.load(name, blocks))
            }
            ranks, n_bytes = rivals.choose_ranks(method, changed, ratio)
            for tensor in gguf.GGUFReader(out, "r+").tensors:
                if tensor.name not in ranks:
                    continue
                W = torch.from_numpy(ours.load(tensor.name, blocks))
                D = torch.from_numpy(theirs.load(tensor.name, blocks)).sub_(W)
                write_values(tensor, (W + rivals.compress(method, D, ranks[tensor.name], blocks)).numpy())
        return Candidate(out, n_bytes, time.monotonic() - begun)


def write_values(tensor: gguf.ReaderTensor, values: np.ndarray) -> None:
    """Puts values into a tensor of a file that is open for writing."""
    if tensor.tensor_type not in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F32):
        raise InputError(f"tensor '{tensor.name}' is {tensor.tensor_type.name}, expected F16 or F32")
    tensor.data[...] = values.reshape(tensor.data.shape)


def error_of(base: Path, tuned: Path, candidate: Path, n_threads: int) -> float:
    """||D - D_hat|| / ||D|| over all matrices together, of the candidate as it is stored; 1 is the base's."""
    models = [GgufModel(path) for path in (base, tuned, candidate)]
    lost, changed = 0.0, 0.0
    with open_blocks(n_threads) as blocks:
        for name, ne in models[0].shapes.items():
            if is_matrix(ne):
                W, target, found = (model.load(name, blocks) for model in models)
                lost += float(np.square(target - found, dtype=np.float64).sum())
                changed += float(np.square(target - W, dtype=np.float64).sum())
    return (lost / changed) ** 0.5


def n_elements(model: Path) -> int:
    """Elements of all weights."""
    return sum(map(prod, GgufModel(model).shapes.values()))


def run_quietly(*command: object) -> None:
    """Runs a command.

    Raises:
        InputError: it failed.
    """
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise InputError(f"{' '.join(map(str, command[:3]))} failed: {done.stderr[-2000:]}")


def methods() -> Iterator[str]:
    """All that can be measured."""
    yield from (BASE, *CONVERTED, *CALIBRATED, *rivals.METHODS, *SMALL_TYPES)
