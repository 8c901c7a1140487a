"""Second moments of what weights multiply, in a safetensors file: what a calibration measures, and conversions reuse.

A tensor for each group of weights that read the same rows, named after one of them: the mean of x x^T, float32 (n_in, n_in),
of a stack of experts (n_expert, n_in, n_in). The file's metadata say which other weights a tensor stands for, and in which
sequence the model's graph reads them. The text that was read is there too, as tokens.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from dqrelo_gguf.compress.blocks import CPU
from dqrelo_gguf.compress.metric import DAMPING, Metric
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.open_file import require_file
from dqrelo_gguf.model.vocabulary import EMBEDDING

FORMAT = "dqrelo-moments-1"
SELF = "self"  # the source of moments that is no file: text that the models write
TOKENS = "tokens"  # the tensor of the text: int32 (n_texts, n_tokens), a text a row, filled up with NO_TOKEN
NO_TOKEN = -1
ANSWERS = "answers"  # int32 (n_texts,): how many tokens of each text come before the fine-tune's own
MAX_TOKENS, MAX_TEXT_TOKENS = 1 << 20, 512  # of all texts, filled up, and of one
# What a row counts that leads to a token of a question, against one that leads to a token of an answer (docs/method.md).
QUESTION_WEIGHT = 0.3
# A matrix that is the embedding too: its rows are also read as they are, where plain errors count.
EMBEDDING_DAMPING = 1.0


@dataclass(frozen=True)
class Text:
    """Tokens that a model reads.

    Args:
        tokens: (n,) int32.
        n_question: so many of them are a question, the others its answer; 0 for text without one.
    """

    tokens: npt.NDArray[np.int32]
    n_question: int = 0

    @property
    def weights(self) -> npt.NDArray[np.float32]:
        """What the row of each token counts, (n,) float32: the last one of a question leads to the answer."""
        weights = np.ones(len(self.tokens), np.float32)
        weights[: max(self.n_question - 1, 0)] = QUESTION_WEIGHT
        return weights


def in_parts(texts: Sequence[Text], n_tokens: int) -> Iterator[list[Text]]:
    """The texts, in sequence, in parts of so many tokens or a little more."""
    part: list[Text] = []
    n_held = 0
    for text in texts:
        part.append(text)
        n_held += len(text.tokens)
        if n_held >= n_tokens:
            yield part
            part, n_held = [], 0
    if part:
        yield part


class Moments:
    """An opened file. Metrics are made when they are asked for; those of the last group are kept.

    Args:
        path: of the file.

    Attributes:
        digest: SHA-256 of the file, in hex.
        sequence: the groups, as the graph reads them.
        texts: what was read; none in a file of an earlier version.

    Raises:
        InputError: it is no such file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        require_file(path, "--calibration")
        try:
            self._file = cast("Any", safe_open(self.path, framework="pt"))
            metadata = dict(self._file.metadata() or {})
            names = set(self._file.keys()) - {TOKENS, ANSWERS}
        except (OSError, SafetensorError) as e:
            raise InputError(f"--calibration {self.path}: is not a readable safetensors file: {e}") from e
        if metadata.get("format") != FORMAT:
            raise InputError(f"--calibration {self.path}: was not written by dqrelo-convert --save-calibration")
        self._group = {name: name for name in names} | _aliases(metadata, self.path, names)
        with Path(self.path).open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.sequence: list[str] = _json(metadata, "sequence", self.path, [])
        if not isinstance(self.sequence, list) or not set(map(str, self.sequence)) <= names:
            raise InputError(f"--calibration {self.path}: its sequence names tensors that it does not have")
        self.texts = self._texts() if self.sequence else []
        self._last: tuple[str, list[Metric]] | None = None
        self._replaced: Mapping[str, torch.Tensor] = {}
        self._shifts: Mapping[str, torch.Tensor] = {}

    def with_step(self, moments: Mapping[str, torch.Tensor], shifts: Mapping[str, torch.Tensor]) -> Self:
        """The same, with other moments and with shifts for some groups (probe/in_sequence.py).

        Args:
            moments: (n_in, n_in) float32 of a group.
            shifts: (n_in, n_in) float32 of a group: what W_ft times it is added to the deltas of the group's weights.
        """
        found = copy.copy(self)
        found.take_step(moments, shifts)
        return found

    def take_step(self, moments: Mapping[str, torch.Tensor], shifts: Mapping[str, torch.Tensor]) -> None:
        """Takes what `with_step` is given."""
        self._last, self._replaced, self._shifts = None, moments, shifts

    def group(self, name: str) -> str | None:
        """The group of a weight, or None where the file has nothing of it."""
        return self._group.get(name)

    def shift(self, name: str) -> torch.Tensor | None:
        """What W_ft of a weight is multiplied with, to be added to its delta; None for no shift."""
        return self._shifts.get(self._group.get(name, name))

    def covers(self, name: str) -> bool:
        """Whether the file has something of a weight."""
        return name in self._group

    def metrics(self, name: str, n_in: int, n_mat: int, device: torch.device = CPU) -> list[Metric] | None:
        """The metric of each matrix of a weight, or None where the file has nothing of it.

        Args:
            name: of the weight.
            n_in: its row length.
            n_mat: its matrices; all share one metric where the file has one.
            device: where the metrics are made, the same one in every call.

        Raises:
            InputError: the file's tensor has another shape, or numbers that are no moments.
        """
        group = self._group.get(name)
        if group is None:
            return None
        last = self._last  # Another thread may put its own there.
        if last is None or last[0] != group:
            last = self._last = None  # The old one need not lie beside the new one.
            last = group, self._read(group, DAMPING if name != EMBEDDING else EMBEDDING_DAMPING, device)
            self._last = last
        found = last[1]
        self._check_fit(name, (n_in, n_mat), group, (found[0].H.shape[0], len(found)))
        return found * (n_mat // len(found))

    def input_norms(self, name: str, n_in: int, n_mat: int) -> list[torch.Tensor] | None:
        """The root mean square of each input of a weight's matrices, (n_in,) float32 each; None where the file has nothing of it.

        Raises:
            InputError: as in `metrics`.
        """
        group = self._group.get(name)
        if group is None:
            return None
        H = self._tensor(group)
        self._check_fit(name, (n_in, n_mat), group, (H.shape[-1], len(H)))
        norms = list(H.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt())
        return norms * (n_mat // len(norms))

    def _check_fit(self, name: str, wanted: tuple[int, int], group: str, found: tuple[int, int]) -> None:
        """Both are a row length and a number of matrices."""
        if found[0] != wanted[0] or found[1] not in (1, wanted[1]):
            raise InputError(
                f"--calibration {self.path}: tensor '{group}' is for {found[1]} matrices of row length {found[0]}, "
                f"weight '{name}' has {wanted[1]} of {wanted[0]}. It was made with another model"
            )

    def _tensor(self, group: str) -> torch.Tensor:
        """The moments of a group, (n_mat or 1, n_in, n_in)."""
        if group in self._replaced:
            return self._replaced[group][None]
        H: torch.Tensor = self._file.get_tensor(group)
        if H.dtype != torch.float32 or H.ndim not in (2, 3) or H.shape[-1] != H.shape[-2]:
            raise InputError(f"--calibration {self.path}: tensor '{group}' is no square float32 matrix")
        if not bool(torch.isfinite(H).all()) or not torch.equal(H, H.mT):
            raise InputError(f"--calibration {self.path}: tensor '{group}' is not finite and symmetric")
        return H.reshape(-1, *H.shape[-2:])

    def _texts(self) -> list[Text]:
        if not {TOKENS, ANSWERS} <= set(self._file.keys()):
            return []
        rows, n_questions = self._file.get_tensor(TOKENS), self._file.get_tensor(ANSWERS)
        is_good = (
            rows.dtype == n_questions.dtype == torch.int32 and rows.ndim == 2 and n_questions.shape == rows.shape[:1]
        )
        is_small = is_good and rows.shape[1] <= MAX_TEXT_TOKENS and rows.numel() <= MAX_TOKENS
        if not is_small or bool((rows < NO_TOKEN).any()) or bool((n_questions < 0).any()):
            raise InputError(
                f"--calibration {self.path}: tensors '{TOKENS}' and '{ANSWERS}' are no texts of {MAX_TEXT_TOKENS} tokens at most "
                f"each, and {MAX_TOKENS} in all"
            )
        texts = [Text(row[row != NO_TOKEN].numpy(), int(n)) for row, n in zip(rows, n_questions, strict=True)]
        return [text for text in texts if len(text.tokens) > 0]

    def _read(self, group: str, damping: float, device: torch.device) -> list[Metric]:
        try:
            return [Metric(matrix.to(device), damping) for matrix in self._tensor(group)]
        except torch.linalg.LinAlgError as e:  # type: ignore[attr-defined]
            raise InputError(f"--calibration {self.path}: tensor '{group}' is not positive semidefinite") from e


def _aliases(metadata: Mapping[str, Any], path: str, names: set[str]) -> dict[str, str]:
    found = _json(metadata, "aliases", path, {})
    if not isinstance(found, dict) or not all(isinstance(v, str) and v in names for v in found.values()):
        raise InputError(f"--calibration {path}: its aliases name tensors that it does not have")
    return found


def _json(metadata: Mapping[str, Any], key: str, path: str, default: Any) -> Any:
    """A value of the file's metadata, which are texts."""
    try:
        return json.loads(metadata[key]) if key in metadata else default
    except ValueError as e:
        raise InputError(f"--calibration {path}: its {key} are no JSON") from e
