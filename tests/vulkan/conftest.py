"""The families of models that test_parity.py makes, for these tests too."""

from tests.graph.test_parity import make_family

__all__ = ["make_family"]
