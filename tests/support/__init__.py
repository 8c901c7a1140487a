"""What several tests share: small models, deltas, servers, runs."""
