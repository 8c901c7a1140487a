"""What the benchmarks share: servers, streams of requests, facts of the machine, random models."""
