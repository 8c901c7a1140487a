"""Which weight of a fine-tune belongs to which weight of the base, decided from headers alone."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.errors import BaseMismatchError, InputError, ShapeError, printable
from dqrelo_gguf.file.layout import ne_text, stripped_ne
from dqrelo_gguf.model.base import GgufModel, Model
from dqrelo_gguf.model.hyperparameters import check_hyperparameters
from dqrelo_gguf.model.parts import BlockRange, Module, block_of, module_of, modules_of
from dqrelo_gguf.model.vocabulary import EMBEDDING, OUTPUT, changed_tokens

# Architectures whose text part is another one, weight for weight: the base's graphs then run the fine-tune's text.
_TEXT_PARTS = {"qwen2vl": "qwen2"}


@dataclass(frozen=True)
class Pair:
    """A weight of the base and the weight of the fine-tune that replaces it; `ne` is ggml's order."""

    name: str
    ne: tuple[int, ...]
    tuned_name: str


@dataclass
class Pairing:
    """What will be converted, and what will not, with the reasons that the report gives."""

    pairs: list[Pair]
    excluded: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Selection:
    """Which weights to convert, by name, and which of these to compress.

    Args:
        include: regular expression of the names to convert; None for all.
        exclude: of those that stay the base's; None for none.
        layers: the blocks to compress; None for all weights, also those outside the blocks.
        modules: the modules to compress; None for all. What is converted and not compressed stays the fine-tune's.
    """

    include: str | None = None
    exclude: str | None = None
    layers: BlockRange | None = None
    modules: frozenset[Module] | None = None

    @classmethod
    def of(
        cls, include: str | None, exclude: str | None, layers: str | None = None, modules: str | None = None
    ) -> Selection:
        """A selection from the command line.

        Raises:
            InputError: one of the expressions is malformed, or no range or list of modules.
        """
        for option, pattern in (("--include", include), ("--exclude", exclude)):
            try:
                re.compile(pattern or "")
            except re.error as e:
                raise InputError(f"{option} {pattern}: not a regular expression: {e}") from e
        return cls(
            include,
            exclude,
            None if layers is None else BlockRange.of(layers),
            None if modules is None else modules_of(modules),
        )

    def takes(self, name: str) -> bool:
        if self.exclude is not None and re.search(self.exclude, name):
            return False
        return self.include is None or re.search(self.include, name) is not None

    def compresses(self, name: str, n_blocks: int) -> bool:
        """Whether a weight that is converted is compressed; if not, it is kept as it is in the fine-tune."""
        if self.modules is not None and module_of(name) not in self.modules:
            return False
        block = block_of(name)
        return self.layers is None or (block is not None and self.layers.has(block, n_blocks))

    def as_metadata(self) -> dict[str, str | None]:
        """The selection as the file's options record it."""
        return {
            "include": self.include,
            "exclude": self.exclude,
            "layers": None if self.layers is None else str(self.layers),
            "modules": None if self.modules is None else ",".join(sorted(self.modules)),
        }


def pair_weights(base: GgufModel, tuned: Model, selection: Selection, blocks: Blocks) -> Pairing:
    """Matches the weights of a fine-tune with those of its base.

    Raises:
        BaseMismatchError: another architecture or hyperparameter.
        ShapeError: a weight has another shape.
        InputError: a weight exists on one side only.
    """
    is_text_part = _TEXT_PARTS.get(tuned.architecture) == base.architecture
    if tuned.architecture != base.architecture and not is_text_part:
        raise BaseMismatchError(
            f"{tuned.label}: architecture is '{tuned.architecture}', base {base.label} has '{base.architecture}'. "
            "Is it the model this was tuned from?"
        )
    result = Pairing([], notes=[*tuned.notes, *check_hyperparameters(base, tuned)])
    if is_text_part:
        result.notes.append(
            f"architecture: the fine-tune is '{tuned.architecture}', the base '{base.architecture}': text runs as in the "
            f"fine-tune; images need a base of its own architecture"
        )
    for name, ne in base.shapes.items():
        if not selection.takes(name):
            result.excluded.append(name)
            continue
        result.pairs.append(Pair(name, ne, _counterpart(name, base, tuned)))
    _refuse_none(result)
    _check_left_over(base, tuned, selection, result, blocks)
    _check_shapes(base, tuned, result)
    _note_tokens(base, tuned, result)
    return result


def pair_adapted(base: GgufModel, tuned: Model, selection: Selection) -> Pairing:
    """Matches the weights that an adapter changes with those of its base.

    Raises:
        ShapeError: a weight has another shape.
        InputError: the base lacks a weight.
    """
    for name in tuned.shapes:
        if name not in base.shapes:
            raise InputError(
                f"{tuned.label}: changes '{printable(name)}', which base {base.label} lacks. "
                "Is it the model this was trained on?"
            )
    result = Pairing([], notes=list(tuned.notes))
    for name, ne in base.shapes.items():
        if name in tuned.shapes and selection.takes(name):
            result.pairs.append(Pair(name, ne, name))
        elif name in tuned.shapes:
            result.excluded.append(name)
    _refuse_none(result)
    _check_shapes(base, tuned, result)
    if OUTPUT not in base.shapes and any(p.name == EMBEDDING for p in result.pairs):
        result.notes.append(
            f"{EMBEDDING}: the base ties its output matrix to it, which changes, too, as in the merged model"
        )
    return result


def _refuse_none(result: Pairing) -> None:
    """Expressions that leave no weight at all are misspelt, or are about the names of a Hugging Face model."""
    if result.excluded and not result.pairs:
        raise InputError(
            f"--include, --exclude: none of {len(result.excluded)} weights is left to convert. Their names are the GGUF's, such as "
            f"{result.excluded[-1]}"
        )


def _check_shapes(base: GgufModel, tuned: Model, result: Pairing) -> None:
    for pair in result.pairs:
        tuned_ne = tuned.shapes[pair.tuned_name]
        if stripped_ne(tuned_ne) != stripped_ne(pair.ne):
            raise ShapeError(
                f"{pair.name}: base is {ne_text(pair.ne)}, fine-tune is {ne_text(tuned_ne)}. "
                f"Is {base.label} the model this was tuned from?"
            )


def _counterpart(name: str, base: Model, tuned: Model) -> str:
    if name in tuned.shapes:
        return name
    if name == OUTPUT:
        # A model without an output matrix uses its embedding, and so does llama.cpp.
        return EMBEDDING
    raise InputError(
        f"{tuned.label}: has no weight '{name}', which base {base.label} has. Is it the model this was tuned from? "
        "Leave out with --exclude what shall stay the base's"
    )


def _check_left_over(base: Model, tuned: Model, selection: Selection, result: Pairing, blocks: Blocks) -> None:
    """Weights that only the fine-tune has change nothing, or cannot be carried."""
    for name in tuned.shapes:
        if name in base.shapes or not selection.takes(name):
            continue
        values = tuned.load(name, blocks)
        if name.endswith(".bias") and not values.any():
            result.notes.append(f"{name}: the base has none, the fine-tune's is zero")
        elif name == OUTPUT and np.array_equal(values, tuned.load(EMBEDDING, blocks)):
            result.notes.append(f"{name}: the base ties it to {EMBEDDING}, the fine-tune's is equal to that")
        elif name == OUTPUT:
            raise InputError(
                f"{tuned.label}: {OUTPUT} differs from {EMBEDDING}, but base {base.label} ties them. "
                f"Use a base file that has its own {OUTPUT}"
            )
        else:
            raise InputError(
                f"{tuned.label}: has a weight '{name}', which base {base.label} lacks: the runtime could not apply it"
            )


def _note_tokens(base: Model, tuned: Model, result: Pairing) -> None:
    """The runtime's tokenizer is the base's, so another text of a token is said aloud."""
    changed = changed_tokens(base, tuned)
    if changed:
        first = changed[0]
        result.notes.append(
            f"{len(changed)} tokens have another text or type than in the base (token {first.id}: {first.text!r}). Their "
            "rows are carried, and dqrelo-merge writes their texts; the runtime reads and writes text with the base's"
        )
