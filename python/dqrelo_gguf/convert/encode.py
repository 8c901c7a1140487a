"""From a weight of the base and its fine-tune to what the delta file holds of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress import best
from dqrelo_gguf.compress.best import Mix
from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.compress.factors import stored_values
from dqrelo_gguf.compress.groups import compress as compress_groups
from dqrelo_gguf.compress.lowrank import seed_of
from dqrelo_gguf.compress.metric import Metric
from dqrelo_gguf.compress.mixes import MAX_PLANES, Spectrum
from dqrelo_gguf.compress.paper import norm, select_by_magnitude
from dqrelo_gguf.compress.pruning import keep_active, keep_largest, keep_random, largest
from dqrelo_gguf.compress.shared_scales import energies_left
from dqrelo_gguf.compress.sign_factors import SignFactors as CodedFactors
from dqrelo_gguf.compress.sign_factors import column_bits, row_bits, scales_of
from dqrelo_gguf.compress.sparse import pack, unpack
from dqrelo_gguf.compress.sparse_forms import sparse_forms
from dqrelo_gguf.compress.spectrum import energies
from dqrelo_gguf.compress.stages import CompressedMatrix, LowRankOptions
from dqrelo_gguf.compress.stages import compress as compress_stages
from dqrelo_gguf.convert.imatrix import Imatrix
from dqrelo_gguf.convert.methods import Kind
from dqrelo_gguf.convert.moments import Moments
from dqrelo_gguf.convert.plan import Options, Planned
from dqrelo_gguf.errors import NonFiniteError
from dqrelo_gguf.file.layout import ENTRY_TYPES, Type, WeightSpec
from dqrelo_gguf.file.weight_data import SignFactors, WeightData
from dqrelo_gguf.model.adapter import Factors
from dqrelo_gguf.model.base import GgufModel, Model
from dqrelo_gguf.model.pairing import Pair
from dqrelo_gguf.model.vocabulary import EMBEDDING, OUTPUT

F32 = npt.NDArray[np.float32]
# What errors of the embedding and the output matrix count, against those of other weights: they reach every answer as they are.
VOCABULARY_WEIGHT = 10.0


# What each input of a weight's matrices is in the mean.
Inputs = Moments | Imatrix


@dataclass(frozen=True)
class Means:
    """What weights are encoded with.

    Args:
        options: of the conversion.
        blocks: the threads to work with.
        inputs: what the weights multiply, for methods that use it; None where that is not known.
        max_rounds: of the method `best`.
    """

    options: Options
    blocks: Blocks
    inputs: Inputs | None = None
    max_rounds: int = best.MAX_ROUNDS


def encode_weight(planned: Planned, reference: GgufModel, tuned: Model, means: Means) -> WeightData:
    """The delta of one weight, compressed as planned, with its errors.

    Where the inputs have a shift for it (convert/moments.py), that of W_ft is added before, and the errors are those of the sum.

    Args:
        planned: the weight.
        reference: what the delta is against, the base or its unquantised form.
        tuned: the fine-tune.
        means: the options, and what there is to work with.

    Raises:
        NonFiniteError: a factor does not fit its type.
    """
    if planned.factors is not None:
        return _of_adapter(planned.spec, planned.factors)
    blocks = means.blocks
    values = tuned.load(planned.pair.tuned_name, blocks)
    weight_norm = norm(_rows(values), blocks)
    made_up = _made_up(values, planned, means)
    D = _subtract(values, reference, planned.pair.name, blocks)
    delta_norm = norm(_rows(D), blocks)
    if made_up is not None:
        D += made_up
    is_whole = planned.spec.dense_type is not None and planned.n_kept is None
    encode = _whole if is_whole else _entries if planned.spec.sparse else _ENCODERS[means.options.row.kind]
    data, error = encode(D, planned, means)
    data.error_delta = error / delta_norm if delta_norm > 0 else 0.0
    data.error_weight = error / weight_norm if weight_norm > 0 else 0.0
    return data


def _of_adapter(spec: WeightSpec, factors: Factors) -> WeightData:
    """An adapter's factors as they are, without an error."""
    if spec.dense_type is not None:
        return WeightData(dense=factors.product())
    return WeightData(u=factors.u, v=factors.v)


def measure_weight(
    pair: Pair, reference: GgufModel, tuned: Model, blocks: Blocks, moments: Moments | None = None
) -> Spectrum:
    """The spectrum of a weight's delta, added up over its matrices, its sparse forms, and what the weight counts.

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
    forms, n_changed = sparse_forms(matrices, blocks)
    calibrated = moments is not None and moments.covers(pair.name)

    total = sum(blocks.each(lambda _, matrix, threads: energies(matrix, threads), matrices))
    assert isinstance(total, torch.Tensor)
    losses = None
    # Experts are coded several at once, each by rows of its own: what that saves in scales is not worth the memory of other ways.
    if len(matrices) == 1 and not calibrated and total[0] > 0:
        left = energies_left(blocks.place(matrices[0]), MAX_PLANES, blocks)
        losses = (left / left[0]).tolist()
    weight = VOCABULARY_WEIGHT if pair.name in (EMBEDDING, OUTPUT) else 1.0
    return Spectrum(
        n_in,
        n_out,
        len(matrices),
        total.cpu().numpy(),
        weight * float(total.sum()) ** -0.5,
        with_column_scales=not calibrated,
        shared_losses=losses,
        forms=forms,
        n_changed=n_changed,
    )


def delta_of(pair: Pair, reference: GgufModel, tuned: Model, blocks: Blocks) -> F32:
    """D = W_ft - W_base of a weight (Eq. 1) in its numpy shape; a new array."""
    return _subtract(tuned.load(pair.tuned_name, blocks), reference, pair.name, blocks)


def _rows(values: F32) -> torch.Tensor:
    """All rows of a weight as one matrix on the CPU; shares the memory."""
    return torch.from_numpy(values.reshape(-1, values.shape[-1]))


def _made_up(values: F32, planned: Planned, means: Means) -> F32 | None:
    """W_ft times its shift, in the weight's numpy shape; None where there is none, or where the delta is not coded."""
    spec = planned.spec
    if not isinstance(means.inputs, Moments) or spec.dense_type is not None or spec.sparse is not None:
        return None
    shift = means.inputs.shift(spec.name)
    return None if shift is None else means.blocks.matmul(_rows(values), shift).numpy().reshape(values.shape)


def _subtract(values: F32, reference: GgufModel, name: str, blocks: Blocks) -> F32:
    """D = W_ft - W_base (Eq. 1), in place, a block of the base's rows at a time."""
    rows = values.reshape(-1, values.shape[-1])

    def step(s: slice, base: F32) -> None:
        rows[s] -= base

    reference.visit(name, blocks, step)
    return values


def _whole(D: F32, planned: Planned, means: Means) -> tuple[WeightData, float]:
    options = means.options
    if planned.spec.dense_type == Type.F16:
        kept = D.astype(np.float16).astype(np.float32)
        D -= kept
        return WeightData(dense=kept), norm(_rows(D), means.blocks)
    if planned.is_exact or options.vectors != "paper":
        return WeightData(dense=D), 0.0
    assert options.budget is not None
    kept = select_by_magnitude(D, float(options.budget))
    return WeightData(dense=kept), float(np.linalg.norm((D - kept).astype(np.float64)))


def _stages(D: F32, planned: Planned, means: Means) -> tuple[WeightData, float]:
    spec, options = planned.spec, means.options
    n_in, n_out, *experts = spec.ne
    low_rank = LowRankOptions(spec.u_type.name, spec.v_type.name, options.svd or "randomised", seed_of(spec.name))

    def compressed(e: int, matrix: torch.Tensor, blocks: Blocks) -> CompressedMatrix:
        own = replace(low_rank, seed=low_rank.seed + e)
        try:
            return compress_stages(matrix, options.row.stages, spec.rank, own, blocks)
        except NonFiniteError as problem:
            raise NonFiniteError(f"{spec.name}: {problem}") from problem

    matrices = means.blocks.each(compressed, D.reshape(-1, n_out, n_in))
    error = sum(m.error**2 for m in matrices) ** 0.5
    return _weight_data(matrices, low_rank, stacked=bool(experts)), error


def _groups(D: F32, planned: Planned, means: Means) -> tuple[WeightData, float]:
    spec = planned.spec
    n_in, n_out, *experts = spec.ne
    found = means.blocks.each(
        lambda _, matrix, blocks: compress_groups(matrix, spec.plane_ranks, blocks), D.reshape(-1, n_out, n_in)
    )
    data = WeightData(sign_factors=_sign_factors([factors for factors, _ in found], bool(experts)))
    return data, sum(error**2 for _, error in found) ** 0.5


def _pruned(D: F32, planned: Planned, means: Means) -> tuple[WeightData, float]:
    spec, keeps, n_kept = planned.spec, means.options.row.keeps, planned.n_kept
    assert n_kept is not None
    n_in, n_out, *_ = spec.ne
    matrices = torch.from_numpy(D.reshape(-1, n_out, n_in))
    norms = None if means.inputs is None else means.inputs.input_norms(spec.name, n_in, len(matrices))
    kept = torch.empty_like(matrices)

    def keep(e: int, matrix: torch.Tensor, blocks: Blocks) -> None:
        if keeps == "random":
            kept[e] = keep_random(matrix, n_kept, seed_of(spec.name) + e)
        elif keeps == "largest":
            kept[e] = keep_largest(matrix, n_kept)
        else:
            own = matrix.new_ones(n_in) if norms is None else norms[e].to(matrix.device)
            kept[e] = keep_active(matrix, own, n_kept, blocks)

    means.blocks.each(keep, matrices.numpy())
    matrices -= kept
    return WeightData(dense=kept.numpy().reshape(D.shape)), norm(_rows(D), means.blocks)


def _best(D: F32, planned: Planned, means: Means) -> tuple[WeightData, float]:
    spec, blocks = planned.spec, means.blocks
    moments = means.inputs if isinstance(means.inputs, Moments) else None
    n_in, n_out, *experts = spec.ne
    mix = Mix(spec.n_planes, spec.plane_ranks, spec.scale_per_row)
    rows = D.reshape(-1, n_out, n_in)
    metrics = _metrics(moments, spec.name, rows, blocks)
    of_matrices: Sequence[Metric | None] = metrics or [None] * len(rows)

    def compressed(e: int, matrix: torch.Tensor, blocks: Blocks) -> best.Compressed:
        return best.compress(matrix, mix, blocks, metric=of_matrices[e], max_rounds=means.max_rounds)

    matrices = blocks.each(compressed, rows)

    data = WeightData()
    planes = [m.planes for m in matrices if m.planes is not None]
    if planes:
        data.planes = [
            (
                _joined([p.bits[i] for p in planes], bool(experts)),
                _joined([p.scales[i].cpu().numpy() for p in planes], bool(experts)),
            )
            for i in range(mix.n_planes)
        ]
        columns = [p.column_scales.cpu().numpy() for p in planes if p.column_scales is not None]
        data.cscale = _joined(columns, bool(experts)) if columns else None
    factors = [m.factors for m in matrices if m.factors is not None]
    if factors:
        data.sign_factors = _sign_factors(factors, bool(experts))
    left = sum(m.weighted_error**2 for m in matrices if m.weighted_error is not None)
    data.error_outputs = _error_outputs(left, rows, metrics, blocks)
    return data, sum(m.error**2 for m in matrices) ** 0.5


def _entries(D: F32, planned: Planned, means: Means) -> tuple[WeightData, float]:
    spec, sparse, blocks = planned.spec, planned.spec.sparse, means.blocks
    assert sparse is not None
    n_in, n_out, *_ = spec.ne
    kept = D != 0
    if np.count_nonzero(kept) > sparse.n_entries:
        kept[kept] = largest(np.abs(D[kept]), sparse.n_entries)
    packed = pack(D, kept, ENTRY_TYPES[sparse.type], sparse.has_mask)
    rows, E = (matrices.reshape(-1, n_out, n_in) for matrices in (D, unpack(packed, n_in)))
    np.subtract(rows, E, out=E)
    moments = means.inputs if isinstance(means.inputs, Moments) else None
    metrics = _metrics(moments, spec.name, rows, blocks)
    left = 0.0 if metrics is None else _weighted_squares(E, metrics, blocks)
    return WeightData(sparse=packed, error_outputs=_error_outputs(left, rows, metrics, blocks)), norm(_rows(E), blocks)


def _error_outputs(left: float, matrices: F32, metrics: Sequence[Metric] | None, blocks: Blocks) -> float | None:
    """WeightData's, from the squared norm of what is lost; None without metrics."""
    if metrics is None:
        return None
    total = _weighted_squares(matrices, metrics, blocks)
    return (left / total) ** 0.5 if total > 0 else 0.0


def _weighted_squares(matrices: F32, metrics: Sequence[Metric], blocks: Blocks) -> float:
    """The squared norm of matrices, each under its metric."""
    return sum(blocks.each(lambda e, matrix, threads: metrics[e].norm(matrix, threads) ** 2, matrices))


def _metrics(moments: Moments | None, name: str, matrices: F32, blocks: Blocks) -> list[Metric] | None:
    n_mat, _, n_in = matrices.shape
    return None if moments is None else moments.metrics(name, n_in, n_mat, blocks.device)


def _weight_data(matrices: list[CompressedMatrix], low_rank: LowRankOptions, stacked: bool) -> WeightData:
    u = [stored_values(m.u, low_rank.u_type).numpy() for m in matrices if m.u is not None]
    v = [stored_values(m.v, low_rank.v_type).numpy() for m in matrices if m.v is not None]
    planes = [
        (
            _joined([bits for bits, _ in plane], stacked),
            _joined([np.array([alpha], np.float32) for _, alpha in plane], stacked),
        )
        for plane in zip(*(m.planes for m in matrices), strict=True)
    ]
    return WeightData(planes=planes, u=_joined(u, stacked) if u else None, v=_joined(v, stacked) if v else None)


def _sign_factors(factors: Sequence[CodedFactors], stacked: bool) -> SignFactors:
    return SignFactors(
        v_bits=_joined([row_bits(f.b, f.plane_ranks) for f in factors], stacked),
        v_scale=_joined([scales_of(f.b, f.plane_ranks) for f in factors], stacked),
        u_bits=_joined([column_bits(f.a, f.plane_ranks) for f in factors], stacked),
        u_scale=_joined([scales_of(f.a, f.plane_ranks) for f in factors], stacked),
    )


def _joined(arrays: Sequence[npt.NDArray[Any]], stacked: bool) -> npt.NDArray[Any]:
    """The array of one matrix as it is, those of several stacked along a first axis."""
    return np.stack(arrays) if stacked else arrays[0]


_ENCODERS: Mapping[Kind, Callable[[F32, Planned, Means], tuple[WeightData, float]]] = {
    "best": _best,
    "stages": _stages,
    "groups": _groups,
    "pruned": _pruned,
}
