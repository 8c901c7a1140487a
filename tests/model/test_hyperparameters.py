"""hyperparameters: what the graph would compute is compared, whether a key states it or its absence does."""

from __future__ import annotations

from typing import Any, cast

import pytest

from dqrelo_gguf.errors import BaseMismatchError, NonFiniteError
from dqrelo_gguf.file.container import GGUFValue, ValueType
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.model.hyperparameters import check_hyperparameters

COMMON = {"embedding_length": 64, "attention.head_count": 4, "context_length": 2048}


class Stub:
    """A model of metadata alone."""

    def __init__(
        self, label: str, fields: dict[str, Any], architecture: str = "llama", shapes: tuple[str, ...] = ()
    ) -> None:
        self.label, self.architecture = label, architecture
        self.shapes = dict.fromkeys(shapes, (1,))
        stated = {
            f"{architecture}.{key}" if "xielu" not in key and "general" not in key else key: v
            for key, v in fields.items()
        }
        self._fields = {key: GGUFValue(value, ValueType.FLOAT32) for key, value in stated.items()}

    def field_names(self) -> list[str]:
        return list(self._fields)

    def field(self, key: str) -> GGUFValue | None:
        return self._fields.get(key)


def check(
    ours: dict[str, Any], theirs: dict[str, Any], architecture: str = "llama", shapes: tuple[str, ...] = ()
) -> list[str]:
    base = cast("GgufModel", Stub("base", COMMON | ours, architecture, shapes))
    return check_hyperparameters(base, cast("Any", Stub("ft", COMMON | theirs, architecture, shapes)))


@pytest.mark.parametrize(
    ("stated", "architecture"),
    [
        ({"rope.freq_base": 10000.0}, "llama"),
        ({"rope.scaling.type": "none"}, "llama"),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 8.0}, "llama"),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}, "llama"),
        ({"rope.scaling.factor": 0.0}, "llama"),
        ({"rope.scaling.attn_factor": 1.0, "rope.scaling.finetuned": True}, "llama"),
        ({"rope.dimension_count": 16, "attention.key_length": 16, "attention.value_length": 16}, "llama"),
        ({"attention.head_count_kv": [4, 4, 4]}, "llama"),
        ({"attention.causal": True, "expert_count": 0, "expert_used_count": 0}, "llama"),
        ({"logit_scale": 0.0, "residual_scale": 1.0, "expert_weights_scale": 0.0}, "granite"),
        ({"rope.freq_base": 1e6, "rope.freq_base_swa": 10000.0}, "gemma3"),
        ({"vocab_size": 640, "feed_forward_length": 96}, "llama"),
        ({"rope.scaling.original_context_length": 4096}, "llama"),
        ({"general.file_type": 1}, "llama"),
    ],
)
def test_a_stated_default_is_as_good_as_none(stated: dict[str, Any], architecture: str) -> None:
    other = {"rope.freq_base": stated["rope.freq_base"]} if architecture == "gemma3" else {}
    assert check(stated, other, architecture) == []
    assert check(other, stated, architecture) == []


@pytest.mark.parametrize(
    ("stated", "key"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, "llama.rope.scaling.factor"),
        ({"rope.scale_linear": 4.0}, "llama.rope.scaling.factor"),
        ({"rope.scaling.type": "yarn"}, "llama.rope.scaling.type"),
        ({"rope.freq_base": 5e5}, "llama.rope.freq_base"),
        ({"rope.dimension_count": 8}, "llama.rope.dimension_count"),
        ({"attention.head_count_kv": 2}, "llama.attention.head_count_kv"),
        ({"attention.key_length": 32}, "llama.attention.key_length"),
        ({"attention.causal": False}, "llama.attention.causal"),
        ({"attention.scale": 0.1}, "llama.attention.scale"),
        ({"logit_scale": 0.5}, "llama.logit_scale"),
        ({"rope.dimension_sections": [8, 8, 0, 0]}, "llama.rope.dimension_sections"),
        ({"attention.sliding_window": 4096}, "llama.attention.sliding_window"),
        ({"something.new": 1}, "llama.something.new"),
        ({"xielu.alpha_p": [0.5, 0.25]}, "xielu.alpha_p"),
        ({"xielu.eps": 1e-6}, "xielu.eps"),
    ],
)
def test_what_one_side_alone_states_is_refused(stated: dict[str, Any], key: str) -> None:
    for sides in ((stated, {}), ({}, stated)):
        with pytest.raises(BaseMismatchError, match=f"^ft: {key} is .*The runtime computes with the base's value") as e:
            check(*sides)
        assert "absent" in str(e.value)


@pytest.mark.parametrize("key", ["rope.freq_base", "xielu.beta", "something.new"])
def test_what_differs_is_refused(key: str) -> None:
    with pytest.raises(BaseMismatchError, match=f"{key} is 3.0, base base has 2.0"):
        check({key: 2.0}, {key: 3.0})
    assert check({key: 2.0}, {key: 2.0000001}) == []


def test_the_context_length_counts_where_it_is_the_original_one() -> None:
    longer = {"context_length": 4096}
    assert "context_length: the fine-tune has 4096" in check({}, longer)[0]
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}
    with pytest.raises(BaseMismatchError, match="original_context_length is absent, which means 4096"):
        check(yarn, yarn | longer)
    original = yarn | {"rope.scaling.original_context_length": 2048}
    assert len(check(original, original | longer)) == 1
    with pytest.raises(BaseMismatchError, match="original_context_length"):
        check({}, longer, "phi3", ("rope_factors_long.weight",))


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), [1.0, float("nan")]])
def test_nan_is_refused(side: int, value: Any) -> None:
    sides: list[dict[str, Any]] = [{}, {}]
    sides[side] = {"xielu.beta": value}
    with pytest.raises(NonFiniteError, match=f"^{('base', 'ft')[side]}: metadata key 'xielu.beta' is NaN"):
        check(*sides)
