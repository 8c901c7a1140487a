"""What a page shows beside the report: of weights, and of the tokens of a sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dqrelo_gguf.evaluate.spectra import WeightSpectra
from dqrelo_gguf.file.reader import WeightInfo

if TYPE_CHECKING:
    from dqrelo_gguf.evaluate.measure import TextResult
    from dqrelo_gguf.evaluate.text import Text
    from dqrelo_gguf.runtime.session import Runtime

SAMPLE_TOKENS = 512  # that count, at most
CONTEXT_TOKENS = 64  # before those of a window


@dataclass
class Details:
    """They grow while an evaluation runs; an interrupt leaves what there is.

    Args:
        weights: of each delta, what its file says of each weight.
        pieces: the bytes of each token that the sample shows.
        spectra: of some weights.
        kinds_left_out: kinds of weights that are too large for a spectrum.
    """

    weights: list[list[WeightInfo]]
    pieces: dict[int, bytes] = field(default_factory=dict)
    spectra: list[WeightSpectra] = field(default_factory=list)
    kinds_left_out: list[str] = field(default_factory=list)


def sample_pieces(rt: Runtime, text: Text, result: TextResult) -> dict[int, bytes]:
    """The bytes of every token that is shown: of the sample, of the context before it, and of all candidates.

    Args:
        rt: the fine-tune. Rows of padding that only the base has are left out.
        text: what was read.
        result: what was found out.
    """
    shown = [w.tokens for w, _ in zip(text.windows, result.sample, strict=False)]
    shown += [found.ids.ravel() for models in result.sample for found in models]
    if not shown:
        return {}
    ids = np.unique(np.concatenate(shown))
    ids = ids[ids < rt.n_vocab]
    return dict(zip(ids.tolist(), rt.pieces(ids), strict=True))
