"""The native module with a Python face."""
