"""Random traffic of many deltas on one server, each answer checked against what its delta says alone."""
