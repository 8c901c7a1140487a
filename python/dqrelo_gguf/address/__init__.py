"""Addresses of files elsewhere: read, fetched into a cache, and given to the rest of the package as paths."""
