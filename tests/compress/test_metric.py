"""metric.py: the norm of a weight's errors is what its outputs lose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dqrelo_gguf.compress.blocks import open_blocks
from dqrelo_gguf.compress.metric import Metric
from tests.support.moments import inputs, moments


def test_the_norm_is_that_of_the_outputs() -> None:
    """Without damping, sum over inputs of |E x|^2, up to the unit; white errors count as in the plain norm."""
    X = inputs(24, 500)
    E = torch.randn((10, 24), generator=torch.Generator().manual_seed(1))
    metric = Metric(moments(X), damping=1e-6)
    with open_blocks(1) as blocks:
        measured = metric.norm(E, blocks)
    unit = float(X.square().sum(dim=1).mean()) / 24
    assert measured**2 == pytest.approx(float((E @ X.T).square().sum()) / len(X) / unit, rel=1e-3)
    assert float(metric.H.diagonal().mean()) == pytest.approx(1, rel=1e-5)


def test_weighing_is_undone() -> None:
    metric = Metric(moments(inputs(32, 400)))
    X = torch.randn((5, 32), generator=torch.Generator().manual_seed(2))
    with open_blocks(1) as blocks:
        weighed = metric.weigh(X, blocks)
        assert metric.norm(X, blocks) == pytest.approx(float(weighed.norm()), rel=1e-5)
    assert torch.allclose(metric.unweigh(weighed), X, atol=1e-4)


@pytest.mark.parametrize(
    "H", [torch.eye(16), torch.zeros((16, 16)), 1e-30 * torch.eye(16)], ids=["plain", "zero", "tiny"]
)
def test_inputs_without_directions_are_the_plain_norm(H: torch.Tensor) -> None:
    """Also of weights that nothing has passed through."""
    metric = Metric(H)
    E = torch.randn((4, 16), generator=torch.Generator().manual_seed(3))
    with open_blocks(1) as blocks:
        assert metric.norm(E, blocks) == pytest.approx(float(E.norm()), rel=1e-5)


def test_the_feedback_is_the_factor_of_the_inverse() -> None:
    metric = Metric(moments(inputs(20, 300)))
    H = metric.H.double()[metric.sequence][:, metric.sequence]
    U = metric.feedback.double()
    assert torch.equal(U, U.triu())
    assert torch.equal(U.diagonal(), torch.ones(20).double())
    # H^-1 = U^T D U with a diagonal D, so this is D^-1.
    inverse = U @ H @ U.T
    assert np.allclose(inverse.numpy(), inverse.diagonal().diag().numpy(), atol=1e-4)
    assert bool((inverse.diagonal() > 0).all())
    assert bool((H.diagonal().diff() <= 0).all())


def test_moments_that_are_none_raise() -> None:
    H = torch.eye(8)
    H[0, 1] = H[1, 0] = 50.0
    with pytest.raises(torch.linalg.LinAlgError):
        Metric(H)
