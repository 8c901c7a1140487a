"""dqrelo-demo: a base, its fine-tunes as deltas, one server that answers for all of them."""
