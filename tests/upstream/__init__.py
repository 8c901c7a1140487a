"""Upstream's server tests, run where they lie, with small local models in place of the hub's."""
