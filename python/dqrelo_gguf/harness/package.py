"""lm-evaluation-harness, which is installed only where it is asked for."""

from __future__ import annotations

from importlib.util import find_spec

from dqrelo_gguf.errors import InputError

MODEL = "dqrelo"  # what --model calls us
_CLASS = "dqrelo_gguf.harness.model:DqreloLM"


def require() -> None:
    """Checks that lm-evaluation-harness is there.

    Raises:
        InputError: it is not.
    """
    if find_spec("lm_eval") is None:
        raise InputError("lm_eval: lm-evaluation-harness is not installed. Run: pip install 'dqrelo-gguf[lm-eval]'")


def register() -> None:
    """Makes `--model dqrelo` known to lm-evaluation-harness in this process: it looks for no plugins by itself.

    Raises:
        InputError: lm-evaluation-harness is not installed.
    """
    require()
    import lm_eval.models  # noqa: F401 - a registry that is not empty is taken for complete
    from lm_eval.api.registry import model_registry

    if MODEL not in model_registry:
        model_registry.register(MODEL, target=_CLASS)
