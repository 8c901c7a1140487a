"""Hyperparameters of a base and its fine-tune, compared by what llama.cpp's graphs would compute with them.

The runtime runs every delta with the base's metadata, so a fine-tune must not have changed any that matters. A key may be
absent: then llama.cpp computes with a default, and so does the comparison. Parameters of an activation may lie outside of
the architecture's keys (Apertus: `xielu.*`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.errors import BaseMismatchError, NonFiniteError, printable
from dqrelo_gguf.model.base import GgufModel, Model

# Shapes show the ones that matter, and a longer context alone changes nothing that is computed.
_HARMLESS = frozenset({"context_length", "vocab_size", "block_count", "nextn_predict_layers", "rope.scaling.finetuned"})
# They say how long a tensor is, so that tensors of equal shapes agree in them; older files lack some.
_SHOWN_BY_SHAPES = (
    "embedding_length",
    "embedding_length_out",
    "embedding_length_per_layer_input",
    "feed_forward_length",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "expert_chunk_feed_forward_length",
    "leading_dense_block_count",
    "expert_count",
    "expert_shared_count",
    "attention.q_lora_rank",
    "tensor_data_layout",
)
# Keys of a text's position in an image: where the base has the text part only, they change nothing.
_OF_IMAGES = frozenset({"rope.dimension_sections", "n_deepstack_layers"})

_ONE_OR_NONE = (0.0, 1.0)  # A scale of 0 is none in llama.cpp.

# What llama.cpp computes with where a key is absent, as far as it is the same for every architecture.
_DEFAULTS: dict[str, Any] = {
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.scale": 0.0,
    "attention.temperature_scale": 0.0,
    "attention.value_scale": 1.0,
    "attention.output_scale": 1.0,
    "embedding_scale": 1.0,
    "expert_group_count": 0,
    "expert_group_used_count": 0,
    "expert_used_count": 0,
    "expert_weights_norm": False,
    "expert_weights_scale": 1.0,
    "logit_scale": 1.0,
    "n_deepstack_layers": 0,
    "num_loops": 1,
    "pooling_type": 0,
    "rescale_every_n_layers": 0,
    "residual_scale": 1.0,
    "rope.dimension_sections": [0],
    "rope.freq_base": 10000.0,
    "rope.scaling.alpha": 0.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
    "rope.scaling.yarn_ext_factor": -1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "ssm.dt_b_c_rms": False,
    "swiglu_clamp_exp": 0.0,
    "swiglu_clamp_shexp": 0.0,
    "swin_norm": False,
    "token_shift_count": 2,
}
_NEUTRAL = dict.fromkeys(
    (
        "attention.output_scale",
        "attention.value_scale",
        "embedding_scale",
        "expert_weights_scale",
        "logit_scale",
        "residual_scale",
        "rope.scaling.factor",
    ),
    _ONE_OR_NONE,
)
# Gemma's sliding layers have this base frequency by default; other architectures have that of their full layers.
_SWA_FREQ_BASE = dict.fromkeys(("gemma3", "gemma3n", "gemma-embedding"), 10000.0)

_ABSENT = object()


def graph_keys(model: Model) -> list[str]:
    """The keys that a graph may read: the architecture's, and those of GGUF that belong to no architecture."""
    prefix = model.architecture + "."
    return [key for key in model.field_names() if key.startswith(prefix) or key in _OTHER_KEYS]


def check_hyperparameters(base: GgufModel, tuned: Model) -> list[str]:
    """Compares the hyperparameters of a fine-tune with its base's.

    Returns:
        Notes about those that differ and change nothing that is computed.

    Raises:
        BaseMismatchError: one that matters differs; names it.
        NonFiniteError: one is NaN.
    """
    ours, theirs = _Computed(base), _Computed(tuned)
    notes = []
    for key in dict.fromkeys([*ours.keys(), *theirs.keys()]):
        if _is_irrelevant(key, ours, theirs) or same_value(ours.value(key), theirs.value(key)):
            continue
        name = ours.full(key)
        if key in _HARMLESS:
            if key in ours.stated and key in theirs.stated:
                notes.append(
                    f"{name}: the fine-tune has {show(theirs.stated[key])}, the base's {show(ours.stated[key])} stays in force"
                )
            continue
        raise BaseMismatchError(
            f"{tuned.label}: {name} is {theirs.text(key)}, base {base.label} has {ours.text(key)}. "
            "The runtime computes with the base's value"
        )
    return notes


def _is_irrelevant(key: str, ours: _Computed, theirs: _Computed) -> bool:
    if key in _SHOWN_BY_SHAPES:
        return key not in ours.stated or key not in theirs.stated
    if key in _OF_IMAGES and ours.architecture != theirs.architecture:
        return True
    return key == "rope.scaling.original_context_length" and not (ours.reads_original or theirs.reads_original)


class _Computed:
    """What llama.cpp makes of a model's metadata. Keys are without the architecture."""

    def __init__(self, model: Model) -> None:
        self.architecture = model.architecture
        self.stated: dict[str, Any] = {}
        for key in graph_keys(model):
            field = model.field(key)
            assert field is not None
            if any(isinstance(x, float) and math.isnan(x) for x in _items(field.value)):
                raise NonFiniteError(f"{model.label}: metadata key '{printable(key)}' is NaN")
            self.stated[key.removeprefix(self.architecture + ".")] = field.value
        has_factors = "rope_factors_long.weight" in model.shapes
        self.reads_original = has_factors or self.stated.get("rope.scaling.type") in ("yarn", "longrope")

    def keys(self) -> list[str]:
        """Those that are stated, and the two that others stand for."""
        keys = ["rope.scaling.factor" if key == "rope.scale_linear" else key for key in self.stated]
        return [*keys, "rope.scaling.original_context_length"]

    def full(self, key: str) -> str:
        return key if key in _OTHER_KEYS else f"{self.architecture}.{key}"

    def value(self, key: str) -> Any:
        """What is computed with, or _ABSENT where that depends on the architecture."""
        rule = _RULES.get(key)
        value = rule(self) if rule is not None else self.stated.get(key, _DEFAULTS.get(key, _ABSENT))
        return 1.0 if key in _NEUTRAL and value in _NEUTRAL[key] else value

    def text(self, key: str) -> str:
        if key in self.stated:
            return show(self.stated[key])
        value = self.value(key)
        return "absent" if value is _ABSENT else f"absent, which means {show(value)}"

    def get(self, key: str, default: Any) -> Any:
        return self.stated.get(key, default)


def _scaling_type(c: _Computed) -> Any:
    kind = c.get("rope.scaling.type", "linear")
    return "linear" if kind == "none" else kind  # with the factor 1


def _scaling_factor(c: _Computed) -> Any:
    if c.get("rope.scaling.type", "linear") == "none":
        return 1.0
    return c.get("rope.scaling.factor", c.get("rope.scale_linear", 1.0))


def _head_length(key: str) -> Callable[[_Computed], Any]:
    def rule(c: _Computed) -> Any:
        if key in c.stated:
            return c.stated[key]
        n_embd, n_head = c.get("embedding_length", None), c.get("attention.head_count", None)
        if not isinstance(n_embd, int) or not isinstance(n_head, int) or n_head == 0:
            return _ABSENT
        return n_embd // n_head

    return rule


# Defaults that depend on other keys.
_RULES: dict[str, Callable[[_Computed], Any]] = {
    "rope.scaling.type": _scaling_type,
    "rope.scaling.factor": _scaling_factor,
    "rope.scaling.original_context_length": lambda c: c.get(
        "rope.scaling.original_context_length", c.get("context_length", _ABSENT)
    ),
    "rope.dimension_count": lambda c: c.get("rope.dimension_count", c.value("attention.key_length")),
    "rope.freq_base_swa": lambda c: c.get(
        "rope.freq_base_swa", _SWA_FREQ_BASE.get(c.architecture, c.value("rope.freq_base"))
    ),
    "attention.head_count_kv": lambda c: c.get("attention.head_count_kv", c.get("attention.head_count", _ABSENT)),
    "attention.key_length": _head_length("attention.key_length"),
    "attention.value_length": _head_length("attention.value_length"),
}


def _keys_of(table: type) -> list[str]:
    keys: list[str] = []
    for name, value in vars(table).items():
        if isinstance(value, type) and not name.startswith("_"):
            keys += _keys_of(value)
        elif isinstance(value, str) and not name.startswith("_"):
            keys.append(value)
    return keys


# GGUF's keys of no architecture, without those of the file, the tokenizer and other kinds of files.
_NO_GRAPH = ("general.", "tokenizer.", "split.", "adapter.", "clip.", "imatrix.", "quantize.")
_OTHER_KEYS = frozenset(
    k for k in _keys_of(gguf.constants.Keys) if "{" not in k and "." in k and not k.startswith(_NO_GRAPH)
)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def same_value(a: Any, b: Any) -> bool:
    """Equal, numbers up to the rounding of float32, one value as good as a list of it."""
    if a is _ABSENT or b is _ABSENT:
        return a is b
    a_list, b_list = _items(a), _items(b)
    if len(a_list) != len(b_list) and 1 in (len(a_list), len(b_list)):
        n = max(len(a_list), len(b_list))
        a_list, b_list = a_list * (n // len(a_list)), b_list * (n // len(b_list))
    if len(a_list) != len(b_list):
        return False
    return all(
        x == y or (isinstance(x, float) and isinstance(y, int | float) and abs(x - y) <= 1e-6 * max(abs(x), abs(y)))
        for x, y in zip(a_list, b_list, strict=True)
    )


def show(value: Any) -> str:
    text = printable(str(value))
    return text if len(text) <= 40 else text[:37] + "..."
