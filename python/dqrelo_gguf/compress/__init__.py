"""The mathematics of one matrix: no files, no models."""
