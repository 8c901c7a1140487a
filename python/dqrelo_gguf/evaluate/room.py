"""How much is held at once: rows of logits, memory of contexts, and what that needs beside the models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.text import Window
from dqrelo_gguf.model.base import GgufModel

WORK_BYTES = 1 << 30  # beside the models and the deltas, at most
SEQUENTIAL_FILE_BYTES = 4 << 30  # of logits in a file, at most
N_SEQUENCES = 16
ROUND_ROWS = 1024  # rows of logits of a model that are compared together, if a window has no more
_PROCESS_BYTES = 448 << 20  # Python, torch and llama.cpp themselves, work of the deltas, what the allocator keeps
_GRAPH_ROWS_BYTES = 32 << 20  # logits of a graph; the context holds as many again
_CELLS_BYTES = 192 << 20  # of generation in a context, if a sequence needs no more
_COMPARE_BYTES = 48 << 20  # divergence.py's blocks, and small things
_N_WIDE = 4  # arrays of a graph as wide as the widest layer


@dataclass(frozen=True)
class Shape:
    """What of a model decides about the memory of a context.

    Args:
        n_vocab: tokens of the vocabulary.
        cell_bytes: of keys and values of a token, in F16.
        n_head: attention heads.
        n_wide: width of the widest layer.
    """

    n_vocab: int
    cell_bytes: int
    n_head: int
    n_wide: int

    @classmethod
    def of(cls, model: GgufModel) -> Shape:
        """From the metadata; what that does not say is taken for the largest that it can be."""

        def number(key: str, default: int) -> int:
            field = model.field(f"{model.architecture}.{key}")
            if field is None:
                return default
            return max(map(int, field.value), default=default) if isinstance(field.value, list) else int(field.value)

        n_embd = number("embedding_length", 4096)
        n_head = max(number("attention.head_count", 1), 1)
        n_head_kv = number("attention.head_count_kv", n_head)
        n_head_dim = n_embd // n_head
        n_key, n_value = (number(f"attention.{what}_length", n_head_dim) for what in ("key", "value"))
        return cls(
            n_vocab=max(ne[-1] for name, ne in model.shapes.items() if name in ("token_embd.weight", "output.weight")),
            cell_bytes=2 * number("block_count", 1) * n_head_kv * (n_key + n_value),
            n_head=n_head,
            n_wide=max(n_embd, number("feed_forward_length", 4 * n_embd)),
        )

    def n_ubatch(self, n_contexts: int) -> int:
        """Tokens of a graph; more than two contexts share what two have."""
        n_bytes = _GRAPH_ROWS_BYTES * 2 // max(n_contexts, 2)
        return max(32, min(512, n_bytes // (4 * self.n_vocab) // 32 * 32))


@dataclass(frozen=True)
class Room:
    """A context of a model.

    Args:
        n_ctx: tokens of all sequences.
        n_seq: sequences at a time.
        n_ubatch: tokens of a graph.
    """

    n_ctx: int
    n_seq: int
    n_ubatch: int

    @classmethod
    def for_windows(cls, shape: Shape, longest: int, n_contexts: int = 2) -> Room:
        """For windows of up to `longest` tokens: one at a time, or several short ones."""
        return cls(max(longest, 16 * N_SEQUENCES), N_SEQUENCES, shape.n_ubatch(n_contexts))

    @classmethod
    def for_answers(cls, shape: Shape, longest: int, n_contexts: int = 2) -> Room:
        """For sequences that grow up to `longest` tokens."""
        n_bytes = _CELLS_BYTES * 2 // max(n_contexts, 2)
        n_seq = max(1, min(N_SEQUENCES, n_bytes // max(shape.cell_bytes * longest, 1)))
        return cls(max(n_seq * longest, N_SEQUENCES), n_seq, shape.n_ubatch(n_contexts))

    def n_bytes(self, shape: Shape) -> int:
        """What the context takes: cells, and a graph with its logits and the context's copy of them."""
        scores = 4 * self.n_ubatch * shape.n_head * self.n_ctx
        layers = 4 * self.n_ubatch * shape.n_wide * _N_WIDE
        return self.n_ctx * shape.cell_bytes + scores + layers + 2 * 4 * self.n_ubatch * shape.n_vocab


def answer_rooms(shapes: Sequence[Shape], longest: int) -> list[Room]:
    """Contexts of models that answer problems.

    Args:
        shapes: of the models.
        longest: tokens of the longest prompt with its answer.

    Raises:
        InputError: they need more than WORK_BYTES.
    """
    rooms = [Room.for_answers(shape, longest, len(shapes)) for shape in shapes]
    needed = _PROCESS_BYTES + sum(room.n_bytes(shape) for room, shape in zip(rooms, shapes, strict=True))
    if needed > WORK_BYTES:
        raise InputError(
            f"a problem of {longest} tokens with its answer needs {needed} bytes beside the models, at most {WORK_BYTES} "
            "are taken. Use shorter problems, or fewer --max-tokens"
        )
    return rooms


@dataclass(frozen=True)
class Rounds:
    """What is read and compared together.

    Args:
        n_rows: rows of logits of one model.
        row_bytes: of a row.
        n_group: models on the base that are read in one call.
        work_bytes: all that is held beside the models.
    """

    n_rows: int
    row_bytes: int
    n_group: int
    work_bytes: int

    @classmethod
    def plan(cls, windows: list[Window], shapes: Sequence[Shape], n_models: int) -> Rounds:
        """As many models and windows at a time as WORK_BYTES hold.

        Args:
            windows: to be read.
            shapes: of the base, the fine-tune and each rival.
            n_models: that are compared: all but the fine-tune.

        Raises:
            InputError: not even one window and one model fit.
        """
        longest, most_rows = max(len(w.tokens) for w in windows), max(w.n_scored for w in windows)
        row_bytes = 4 * max(shape.n_vocab for shape in shapes)
        contexts = sum(Room.for_windows(s, longest, len(shapes)).n_bytes(s) for s in shapes)
        fixed = _PROCESS_BYTES + _COMPARE_BYTES + contexts
        fixed += 9 * (n_models + 1) * sum(w.n_scored for w in windows)  # what is kept of each token
        left = (WORK_BYTES - fixed) // row_bytes
        n_group = min(left // most_rows - 1, n_models)
        if n_group < 1:
            needed = fixed + 2 * most_rows * row_bytes
            raise InputError(
                f"a window of {longest} tokens needs {needed} bytes beside the models, at most {WORK_BYTES} are taken. "
                "Use a smaller --ctx, or fewer --tokens"
            )
        n_rows = max(most_rows, min(left // (n_group + 1), ROUND_ROWS))
        return cls(n_rows, row_bytes, n_group, fixed + (n_group + 1) * n_rows * row_bytes)

    def of(self, windows: list[Window]) -> Iterator[list[Window]]:
        """The windows of each round, in order."""
        taken, n_rows = list[Window](), 0
        for window in windows:
            if taken and n_rows + window.n_scored > self.n_rows:
                yield taken
                taken, n_rows = [], 0
            taken.append(window)
            n_rows += window.n_scored
        if taken:
            yield taken
