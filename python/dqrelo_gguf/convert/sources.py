"""What a conversion reads: where its files lie, and the models that are opened from them.

A conversion opens them once, and so does each worker of a cluster (cluster/worker.py), in the same way.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.resolve import local
from dqrelo_gguf.address.stream import RemoteDirectory, streamed
from dqrelo_gguf.convert.adapter import check_options, is_adapter, open_adapter
from dqrelo_gguf.convert.encode import Inputs
from dqrelo_gguf.convert.imatrix import OPTION as IMATRIX
from dqrelo_gguf.convert.imatrix import Imatrix
from dqrelo_gguf.convert.merged_model import Blend, MergedModel
from dqrelo_gguf.convert.moments import Moments
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.errors import BaseMismatchError, InputError, ShapeError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.fingerprint import Match, base_identity, compare
from dqrelo_gguf.file.model_file import files_of
from dqrelo_gguf.model.adapter import AdaptedModel, Adapter
from dqrelo_gguf.model.base import GgufModel, Model
from dqrelo_gguf.model.checkpoint import open_checkpoint
from dqrelo_gguf.model.vocabulary import fit_vocabulary

Given = str | os.PathLike[str]

# What each input is, for its address, and what messages call it.
_KINDS = {
    "base": (Kind.MODEL, "base"),
    "tuned": (Kind.TUNED, "fine-tune"),
    "reference": (Kind.MODEL, "--reference"),
    "base_config": (Kind.FILE, "--base-config"),
    "calibration": (Kind.FILE, "--calibration"),
    "imatrix": (Kind.FILE, IMATRIX),
}


@dataclass(frozen=True)
class Sources:
    """The inputs that a weight's delta is made from; `convert.job.Job` says what each is. All may be addresses."""

    base: Given
    tuned: Given | Blend
    reference: Given | None = None
    base_config: Given | None = None
    calibration: Given | None = None
    imatrix: Given | None = None
    stream: bool = False

    def fetched(self) -> Self:
        """The same with paths in the place of addresses."""
        found: dict[str, Any] = {
            name: local(path, _KINDS[name][0]) for name, path in self._given(but_streamed=True).items()
        }
        if self.stream and not isinstance(self.tuned, Blend):
            found["tuned"] = streamed(self.tuned)
        return replace(self, **found)

    def absolute(self) -> Self:
        """The same paths, from the root: for a process with another working directory."""
        paths: dict[str, Any] = {name: Path(path).absolute() for name, path in self._given().items()}
        found = replace(self, **paths)
        if isinstance(found.tuned, Blend):
            deltas = tuple(path.absolute() for path in found.tuned.deltas)
            found = replace(found, tuned=replace(found.tuned, deltas=deltas))
        return found

    def or_fetched(self, addresses: Sources) -> Self:
        """The same where a file is there, and from its address where it is not.

        Args:
            addresses: the inputs as they were given.
        """
        as_given = addresses._given()
        missing = {name for name, path in self._given().items() if not Path(path).exists()}
        found: dict[str, Any] = {name: local(as_given[name], _KINDS[name][0]) for name in missing if name in as_given}
        return replace(self, **found)

    def files(self) -> dict[str, list[Path]]:
        """The files of each input, by the name that messages give it; a fine-tune whose weights lie elsewhere has none."""
        given = self._given(but_streamed=isinstance(self.tuned, RemoteDirectory))
        found = {_KINDS[name][1]: files_of(path) for name, path in given.items()}
        if isinstance(self.tuned, Blend):
            found["deltas"] = list(self.tuned.deltas)
        return found

    def _given(self, but_streamed: bool = False) -> dict[str, Given]:
        """What is there, except for deltas, and if asked for a fine-tune whose weights stay where they lie."""
        names = [name for name in _KINDS if not (but_streamed and self.stream and name == "tuned")]
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None and not isinstance(value, Blend)}


@dataclass(frozen=True)
class Models:
    """The opened models.

    Args:
        base: the base that the delta will run on.
        given_reference: what the delta is against in place of the base; None for the base itself.
        source: the fine-tune.
        tuned: the fine-tune with as many rows by token as the base.
        inputs: what the weights multiply, for methods that use it; None where that is not known.
    """

    base: GgufModel
    given_reference: GgufModel | None
    source: Model
    tuned: Model
    inputs: Inputs | None = None

    @property
    def reference(self) -> GgufModel:
        """What the delta is against."""
        return self.given_reference or self.base

    @property
    def adapter(self) -> Adapter | None:
        """The adapter whose factors are stored as they are; None where deltas are compressed."""
        adapter = self.source.adapter if isinstance(self.source, AdaptedModel) else None
        return None if adapter is None or adapter.computed else adapter


def open_models(sources: Sources, options: Options) -> Models:
    """Opens what a conversion reads, by headers alone.

    Raises:
        DqreloError: something of it cannot be read, or does not belong together.
    """
    inputs = _open_inputs(sources)
    base = GgufModel(sources.base)
    reference = None if sources.reference is None else _open_reference(sources.reference, base)
    source = _open_tuned(sources, base, reference, options)
    return Models(base, reference, source, fit_vocabulary(base, source), inputs)


def _open_inputs(sources: Sources) -> Inputs | None:
    """What weights multiply, from a file of an earlier measurement; None where none is given."""
    if sources.imatrix is not None:
        return Imatrix(sources.imatrix)
    return None if sources.calibration is None else Moments(sources.calibration)


def _open_tuned(sources: Sources, base: GgufModel, reference: GgufModel | None, options: Options) -> Model:
    """The fine-tune: a model of its own, or the base with an adapter or with deltas."""
    if isinstance(sources.tuned, Blend):
        return MergedModel(base, sources.tuned)
    if not is_adapter(Path(sources.tuned)):
        if sources.base_config is not None:
            raise InputError("--base-config: is for a LoRA adapter, and the fine-tune is a model")
        return open_checkpoint(sources.tuned, base)
    config = None if sources.base_config is None else Path(sources.base_config)
    model = open_adapter(Path(sources.tuned), base, config, reference)
    check_options(options, model.adapter)
    return model


def _open_reference(path: Given, base: GgufModel) -> GgufModel:
    reference = GgufModel(path)
    if dict(reference.shapes) != dict(base.shapes):
        name = min(set(reference.shapes.items()) ^ set(base.shapes.items()))[0]
        raise ShapeError(f"--reference {reference.label}: weight '{name}' is not the same as in base {base.label}")
    comparison = compare(base_identity(reference.file), base.file)
    if comparison.match == Match.OTHER_MODEL:
        raise BaseMismatchError(
            f"--reference {reference.label}: is not the model that base {base.label} was quantised from "
            f"(correlation {comparison.correlation:.2f}, expected at least {fmt.SAME_MODEL_CORRELATION})"
        )
    return reference
