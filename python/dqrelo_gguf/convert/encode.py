"""From a weight of the base and its fine-tune to what the delta file holds of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress import best
from dqrelo_gguf.compress.best import Mix
from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.compress.factors import stored_values
from dqrelo_gguf.compress.lowrank import seed_of
from dqrelo_gguf.compress.metric import Metric
from dqrelo_gguf.compress.mixes import Spectrum
from dqrelo_gguf.compress.paper import CompressedMatrix, Method, compress, norm, select_by_magnitude
from dqrelo_gguf.compress.sign_factors import column_bits, row_bits, scales_of
from dqrelo_gguf.compress.spectrum import energies
from dqrelo_gguf.convert.moments import Moments
from dqrelo_gguf.convert.plan import Options, Planned
from dqrelo_gguf.errors import NonFiniteError
from dqrelo_gguf.file.weight_data import SignFactors, WeightData
from dqrelo_gguf.model.base import GgufModel, Model
from dqrelo_gguf.model.pairing import Pair
from dqrelo_gguf.model.vocabulary import EMBEDDING, OUTPUT

F32 = npt.NDArray[np.float32]
# What errors of the embedding and the output matrix count, against those of other weights: they reach every answer as they are.
VOCABULARY_WEIGHT = 10.0


def encode_weight(
    planned: Planned,
    reference: GgufModel,
    tuned: Model,
    options: Options,
    blocks: Blocks,
    *,
    moments: Moments | None = None,
    max_rounds: int = best.MAX_ROUNDS,
) -> WeightData:
    """The delta of one weight, compressed as planned, with its errors.

    Args:
        planned: the weight.
        reference: what the delta is against, the base or its unquantised form.
        tuned: the fine-tune.
        options: of the conversion.
        blocks: the threads to work with.
        moments: what the weights multiply, for the method `best`; None where that is not known.
        max_rounds: of the method `best`.

    Raises:
        NonFiniteError: a factor does not fit its type.
    """
    values = tuned.load(planned.pair.tuned_name, blocks)
    weight_norm = norm(_rows(values), blocks)
    D = _subtract(values, reference, planned.pair.name, blocks)
    delta_norm = norm(_rows(D), blocks)
    if planned.spec.dense_type is not None:
        data, error = _dense(D, options)
    elif options.method_name == "paper":
        data, error = _signs(D, planned, options, blocks)
    else:
        data, error = _best(D, planned, moments, blocks, max_rounds)
    data.error_delta = error / delta_norm if delta_norm > 0 else 0.0
    data.error_weight = error / weight_norm if weight_norm > 0 else 0.0
    return data


def measure_weight(
    pair: Pair, reference: GgufModel, tuned: Model, blocks: Blocks, moments: Moments | None = None
) -> Spectrum:
    """The spectrum of a weight's delta, added up over its matrices, and what the weight counts.

    That is 1 / ||D||, and VOCABULARY_WEIGHT times as much for the embedding and the output matrix: of all that was tried
    without a forward pass, this loses least (docs/method.md).

    Args:
        pair: the weight.
        reference: what the delta is against.
        tuned: the fine-tune.
        blocks: the threads to work with.
        moments: what the weights multiply; None where that is not known. The mix does not depend on them (docs/method.md).
    """
    D = delta_of(pair, reference, tuned, blocks)
    n_in, n_out, *_ = pair.ne
    matrices = D.reshape(-1, n_out, n_in)
    total = sum(energies(torch.from_numpy(matrix), blocks) for matrix in matrices)
    assert isinstance(total, torch.Tensor)
    weight = VOCABULARY_WEIGHT if pair.name in (EMBEDDING, OUTPUT) else 1.0
    calibrated = moments is not None and moments.covers(pair.name)
    return Spectrum(
        n_in,
        n_out,
        len(matrices),
        total.numpy(),
        weight * float(total.sum()) ** -0.5,
        with_column_scales=not calibrated,
    )


def delta_of(pair: Pair, reference: GgufModel, tuned: Model, blocks: Blocks) -> F32:
    """D = W_ft - W_base of a weight (Eq. 1) in its numpy shape; a new array."""
    return _subtract(tuned.load(pair.tuned_name, blocks), reference, pair.name, blocks)


def _rows(values: F32) -> torch.Tensor:
    """All rows of a weight as one matrix; shares the memory."""
    return torch.from_numpy(values.reshape(-1, values.shape[-1]))


def _subtract(values: F32, reference: GgufModel, name: str, blocks: Blocks) -> F32:
    """D = W_ft - W_base (Eq. 1), in place, a block of the base's rows at a time."""
    rows = values.reshape(-1, values.shape[-1])

    def step(s: slice, base: F32) -> None:
        rows[s] -= base

    reference.visit(name, blocks, step)
    return values


def _dense(D: F32, options: Options) -> tuple[WeightData, float]:
    if options.vectors != "paper":
        return WeightData(dense=D), 0.0
    assert isinstance(options.ratio, Fraction)
    kept = select_by_magnitude(D, float(options.ratio))
    return WeightData(dense=kept), float(np.linalg.norm((D - kept).astype(np.float64)))


def _signs(D: F32, planned: Planned, options: Options, blocks: Blocks) -> tuple[WeightData, float]:
    spec = planned.spec
    n_in, n_out, *experts = spec.ne
    method = Method(spec.u_type.name, spec.v_type.name, options.svd or "randomised", seed_of(spec.name))
    matrices = []
    for e, matrix in enumerate(D.reshape(-1, n_out, n_in)):
        try:
            matrices.append(
                compress(torch.from_numpy(matrix), spec.rank, replace(method, seed=method.seed + e), blocks)
            )
        except NonFiniteError as e:
            raise NonFiniteError(f"{spec.name}: {e}") from e
    error = sum(m.error**2 for m in matrices) ** 0.5
    return _weight_data(matrices, method, stacked=bool(experts)), error


def _best(
    D: F32, planned: Planned, moments: Moments | None, blocks: Blocks, max_rounds: int
) -> tuple[WeightData, float]:
    spec = planned.spec
    n_in, n_out, *experts = spec.ne
    mix = Mix(spec.n_planes, spec.plane_ranks)
    rows = D.reshape(-1, n_out, n_in)
    metrics: Sequence[Metric | None] = _metrics(moments, spec.name, rows) or [None] * len(rows)
    matrices = [
        best.compress(torch.from_numpy(matrix), mix, blocks, metric=metric, max_rounds=max_rounds)
        for matrix, metric in zip(rows, metrics, strict=True)
    ]

    def stacked(arrays: Iterable[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.stack(list(arrays)) if experts else next(iter(arrays))

    data = WeightData()
    planes = [m.planes for m in matrices if m.planes is not None]
    if planes:
        data.planes = [
            (stacked(p.bits[i] for p in planes), stacked(p.row_scales[i].numpy() for p in planes))
            for i in range(mix.n_planes)
        ]
        columns = [p.column_scales.numpy() for p in planes if p.column_scales is not None]
        data.cscale = stacked(columns) if columns else None
    factors = [m.factors for m in matrices if m.factors is not None]
    if factors:
        data.sign_factors = SignFactors(
            v_bits=stacked(row_bits(f.b, mix.plane_ranks) for f in factors),
            v_scale=stacked(scales_of(f.b, mix.plane_ranks) for f in factors),
            u_bits=stacked(column_bits(f.a, mix.plane_ranks) for f in factors),
            u_scale=stacked(scales_of(f.a, mix.plane_ranks) for f in factors),
        )
    if metrics[0] is not None:
        total = sum(
            m.norm(torch.from_numpy(r), blocks) ** 2 for m, r in zip(metrics, rows, strict=True) if m is not None
        )
        left = sum(m.weighted_error**2 for m in matrices if m.weighted_error is not None)
        data.error_outputs = (left / total) ** 0.5 if total > 0 else 0.0
    return data, sum(m.error**2 for m in matrices) ** 0.5


def _metrics(moments: Moments | None, name: str, matrices: F32) -> list[Metric] | None:
    n_mat, _, n_in = matrices.shape
    return None if moments is None else moments.metrics(name, n_in, n_mat)


def _weight_data(matrices: list[CompressedMatrix], method: Method, stacked: bool) -> WeightData:
    """One matrix as it is, several stacked along a first axis."""
    u = [stored_values(m.u, method.u_type).numpy() for m in matrices if m.u is not None]
    v = [stored_values(m.v, method.v_type).numpy() for m in matrices if m.v is not None]
    scale = np.array([[m.alpha] for m in matrices], np.float32)
    if not stacked:
        plane = matrices[0].sign_bits, scale[0]
        return WeightData(planes=[plane], u=u[0] if u else None, v=v[0] if v else None)
    return WeightData(
        planes=[(np.stack([m.sign_bits for m in matrices]), scale)],
        u=np.stack(u) if u else None,
        v=np.stack(v) if v else None,
    )
