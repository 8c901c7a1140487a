"""Figures of a comparison on text, defined as llama-perplexity's --kl-divergence defines them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.evaluate.divergence import Compared

F64 = npt.NDArray[np.float64]

KL_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 10.0, 5.0, 1.0, 0.1)


@dataclass(frozen=True)
class Mean:
    """A mean over tokens with a standard error."""

    value: float
    error: float

    @classmethod
    def over_tokens(cls, values: F64) -> Mean:
        """Each token counts as a draw of its own, as in llama-perplexity."""
        n = len(values)
        spread = max(float((values**2).mean() - values.mean() ** 2), 0.0)
        return cls(float(values.mean()), (spread / (n - 1)) ** 0.5 if n > 1 else 0.0)

    @classmethod
    def of(cls, sums: F64, counts: F64) -> Mean:
        """From the sum and the number of tokens of each text: the tokens of one text are no independent draws."""
        value = sums.sum() / counts.sum()
        spread = ((sums - value * counts) ** 2).sum() * len(sums) / max(len(sums) - 1, 1)
        return cls(float(value), float(spread**0.5 / counts.sum()))


@dataclass(frozen=True)
class TextFigures:
    """A model against the fine-tune on text. Probabilities are from 0 to 1, KL in nats.

    Args:
        kl: mean KL(fine-tune || model), its error over tokens.
        kl_window_error: its error where a window, not a token, is a draw.
        kl_median, kl_max, kl_min: of the tokens.
        kl_percentiles: by percent.
        same_top: share of the tokens of which both find the same one most probable.
        dp_mean: mean difference of the probability of the token that follows.
        dp_rms: root of its mean square.
        ppl: perplexity of the model.
        log_ppl_ratio: ln(PPL(model) / PPL(fine-tune)).
    """

    kl: Mean
    kl_window_error: float
    kl_median: float
    kl_max: float
    kl_min: float
    kl_percentiles: dict[str, float]
    same_top: Mean
    dp_mean: Mean
    dp_rms: Mean
    ppl: Mean
    log_ppl_ratio: Mean

    @classmethod
    def of(cls, tuned_nll: npt.NDArray[np.float32], model: Compared, window_lengths: list[int]) -> TextFigures:
        """From the tokens of all windows, one after the other; `window_lengths` says how many each has."""
        kl, nll, reference = (x.astype(np.float64) for x in (model.kl, model.nll, tuned_nll))
        dp = np.exp(-nll) - np.exp(-reference)
        starts = np.concatenate([[0], np.cumsum(window_lengths)[:-1]])
        by_window = Mean.of(np.add.reduceat(kl, starts), np.array(window_lengths, np.float64))
        square = Mean.over_tokens(dp**2)
        rms = square.value**0.5
        return cls(
            kl=Mean.over_tokens(kl),
            kl_window_error=by_window.error,
            kl_median=float(np.median(kl)),
            kl_max=float(kl.max()),
            kl_min=float(kl.min()),
            kl_percentiles={f"{p:g}": float(np.percentile(kl, p)) for p in KL_PERCENTILES},
            same_top=_share(model.same_top),
            dp_mean=Mean.over_tokens(dp),
            dp_rms=Mean(rms, 0.5 / rms * square.error if rms > 0 else 0.0),
            ppl=perplexity(model.nll),
            log_ppl_ratio=Mean.over_tokens(nll - reference),
        )


def perplexity(nll: npt.NDArray[np.float32]) -> Mean:
    """Of a model whose -log P of each token is given."""
    mean = Mean.over_tokens(nll.astype(np.float64))
    value = float(np.exp(mean.value))
    return Mean(value, value * mean.error)


def recovered(delta: TextFigures, base: TextFigures) -> float | None:
    """Share of the way from the base to the fine-tune, in KL: 1 is the fine-tune. None where the base is there already."""
    return 1 - delta.kl.value / base.kl.value if base.kl.value > 0 else None


def _share(hits: npt.NDArray[np.bool_]) -> Mean:
    share, n = float(hits.mean()), len(hits)
    return Mean(share, (share * (1 - share) / (n - 1)) ** 0.5 if n > 1 else 0.0)
