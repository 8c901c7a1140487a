"""Conversions on a cluster: one process plans and writes, workers on other machines compute (docs/converter.md)."""
