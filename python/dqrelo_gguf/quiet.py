"""Keeps the libraries that the conversion uses from writing over the command's own output."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries(verbose: bool) -> None:
    """Shows the logs of llama.cpp's conversion and of transformers only if they were asked for.

    To be called before they are imported.
    """
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.basicConfig(level=logging.ERROR)
    warnings.filterwarnings("ignore")
