"""dqrelo-bench: what a delta costs in tokens a second, against its base alone in the same run (docs/bench.md)."""
