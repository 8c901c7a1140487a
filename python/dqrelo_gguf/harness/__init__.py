"""Models of lm-evaluation-harness: a base in memory, and the deltas that answer its tasks on it."""
