"""From a weight of the base and its fine-tune to what the delta file holds of it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.compress.factors import stored_values
from dqrelo_gguf.compress.lowrank import seed_of
from dqrelo_gguf.compress.paper import CompressedMatrix, Method, compress, norm, select_by_magnitude
from dqrelo_gguf.convert.plan import Options, Planned
from dqrelo_gguf.errors import NonFiniteError
from dqrelo_gguf.file.weight_data import WeightData
from dqrelo_gguf.model.base import GgufModel, Model

F32 = npt.NDArray[np.float32]


def encode_weight(planned: Planned, reference: GgufModel, tuned: Model, options: Options, blocks: Blocks) -> WeightData:
    """The delta of one weight, compressed as planned, with its errors.

    Args:
        planned: the weight.
        reference: what the delta is against, the base or its unquantised form.
        tuned: the fine-tune.
        options: of the conversion.
        blocks: the threads to work with.

    Raises:
        NonFiniteError: a factor does not fit its type.
    """
    values = tuned.load(planned.pair.tuned_name, blocks)
    weight_norm = norm(_rows(values), blocks)
    D = _subtract(values, reference, planned.pair.name, blocks)
    delta_norm = norm(_rows(D), blocks)
    if planned.spec.dense_type is not None:
        data, error = _dense(D, options)
    else:
        data, error = _signs(D, planned, options, blocks)
    data.error_delta = error / delta_norm if delta_norm > 0 else 0.0
    data.error_weight = error / weight_norm if weight_norm > 0 else 0.0
    return data


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
    if options.vectors == "whole":
        return WeightData(dense=D), 0.0
    assert isinstance(options.ratio, Fraction)
    kept = select_by_magnitude(D, float(options.ratio))
    return WeightData(dense=kept), float(np.linalg.norm((D - kept).astype(np.float64)))


def _signs(D: F32, planned: Planned, options: Options, blocks: Blocks) -> tuple[WeightData, float]:
    spec = planned.spec
    n_in, n_out, *experts = spec.ne
    method = Method(spec.u_type.name, spec.v_type.name, options.svd, seed_of(spec.name))
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
