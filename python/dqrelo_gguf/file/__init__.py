"""The delta file: header, layout, checks, reader, writer, base identity."""
