"""LoRA adapters as PEFT saves them: a directory with adapter_config.json and adapter_model.safetensors.

Their tensors have the names and the order of rows of the Hugging Face model. llama.cpp's conversion gives them those of the
base: it takes pairs of factors for weights (LoraTorchTensor), so that a permutation of rows becomes one of the factor's.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from dqrelo_gguf._pin import gguf, lora_module
from dqrelo_gguf.errors import BaseMismatchError, DqreloError, InputError, printable
from dqrelo_gguf.file.container import GGUFValue, ValueType
from dqrelo_gguf.file.format import KEY_CHAT_TEMPLATE
from dqrelo_gguf.file.lfs import refuse_lfs_pointer
from dqrelo_gguf.file.open_file import file_problem, require_file
from dqrelo_gguf.model.adapter import F32, Adapter, Computed, Factors
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.model.base_config import OPTION, base_config, read_json
from dqrelo_gguf.model.checkpoint import conversion_class, is_of_tower
from dqrelo_gguf.model.peft_config import CONFIG, MERGE, PeftConfig, read_peft_config
from dqrelo_gguf.model.peft_methods import (
    MAGNITUDE,
    RANKED,
    Method,
    Pair,
    Parts,
    kron_sides,
    magnitude_pair,
    pairs_fit,
    shapes_fit,
)
from dqrelo_gguf.model.vocabulary import EMBEDDING, OUTPUT
from dqrelo_gguf.model.weight_headers import load_tensors

WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_MAX_TEMPLATE_BYTES = 1 << 20
# What of a tensor's name says which part of which module it is, or of all modules. A name of the adapter may stand behind.
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_(embedding_)?[AB]|lora_magnitude_vector|hada_w[12]_[ab]|lokr_w[12](_[ab])?|vera_lambda_[bd])"
    r"(\.default)?(\.weight)?"
)
_SHARED = re.compile(r"base_model\.(?P<part>vera_[AB])(\.default)?")
_OF_BASE = re.compile(r".+\.base_layer\.weight")
_WHOLE = re.compile(r"(?P<module>.+?)(\.modules_to_save(\.default)?|\.base_layer)?\.(?P<part>weight|bias)")
# Names of tensors that show another method, each with what it is called.
_OTHER_TENSORS = (
    (r".*\.(hada_t|lokr_t|oft_|ia3_l|boft_).*", "no LoRA"),
    (r".*\.lora_[AB](\.default)?\.bias", "lora_bias, factors with biases"),
    (r".*\.token_adapter\..*|.*\.trainable_tokens_.*", "trainable_token_indices, rows of the embedding"),
)


def is_peft_directory(path: Path) -> bool:
    """True for a directory with the files of an adapter and without those of a model."""
    if not path.is_dir():
        return False
    names = {p.name for p in path.iterdir()}
    whole = any(re.fullmatch(r"(pytorch_)?model.*\.(safetensors|bin)(\.index\.json)?", name) for name in names)
    return not whole and not names.isdisjoint((CONFIG, *WEIGHTS))


def read_peft_adapter(path: Path, base: GgufModel, config: Path | None) -> Adapter:
    """Reads the adapter, with its scales in the factors, by the base's names.

    Args:
        path: the directory.
        base: what it is for.
        config: a config.json of the base, or a directory that has one; None for what the base's GGUF says.

    Raises:
        InputError: it is no LoRA, it is not whole, or the conversion cannot convert it.
        BaseMismatchError: it has weights that the base lacks.
    """
    about = read_peft_config(path)
    modules = _Modules.read(_weights_file(path), about, max(max(ne) for ne in base.shapes.values()))
    with tempfile.TemporaryDirectory(prefix="dqrelo-") as folder, torch.inference_mode():
        model = _conversion(Path(folder) / "base", base_config(base, config, str(path)), base, path)
        made = _convert(path, model, modules, base, about.method)
    factors, computed = made.stored_and_computed(about.method)
    adapter = Adapter(str(path), path.resolve().name, factors, made.whole, notes=modules.notes, computed=computed)
    if computed:
        adapter.notes.append(_computed_note(about.method, computed, base))
    template = _chat_template(path, adapter.notes)
    if template is not None:
        adapter.fields[KEY_CHAT_TEMPLATE] = GGUFValue(template, ValueType.STRING)
    return adapter


@dataclass
class _Modules:
    """The tensors of the file by the weight's name in the Hugging Face model.

    Args:
        pairs: of each weight the pairs (A, B), as its rows lie in the checkpoint: (rank, row length) and (rows, rank). The first B is scaled.
        magnitudes: of DoRA, likewise one pair.
        whole: weights and biases that replace the base's.
        notes: what is left out.
    """

    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    magnitudes: dict[str, Pair] = field(default_factory=dict)
    whole: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, about: PeftConfig, n_largest: int) -> _Modules:
        """Sorts the tensors of a file, of weights whose sides have at most n_largest elements.

        Raises:
            InputError: one of them is no part of such an adapter.
        """
        found, parts, shared = cls(), dict[str, dict[str, torch.Tensor]](), dict[str, torch.Tensor]()
        for name, tensor in load_tensors(path).items():
            where = f"{path}: tensor '{printable(name)[:120]}'"
            if not tensor.is_floating_point() or tensor.numel() == 0:
                raise InputError(f"{where} holds no real numbers ({tensor.dtype}, shape {list(tensor.shape)})")
            if match := _SHARED.fullmatch(name):
                shared[match["part"]] = tensor.to(torch.float32)
            else:
                found._sort(name.removeprefix(_PREFIX), tensor.to(torch.float32), where, parts)
        for module, own in parts.items():
            all_parts, where = {**own, **shared}, f"{path}: '{printable(module)[:120]}'"
            _check_parts(where, module, all_parts, about, n_largest)
            found._pair(where, module, all_parts, about)
        return found

    def _sort(self, name: str, tensor: torch.Tensor, where: str, parts: dict[str, dict[str, torch.Tensor]]) -> None:
        for pattern, what in _OTHER_TENSORS:
            if re.fullmatch(pattern, name):
                raise InputError(f"{where}: {what} is not converted. {MERGE}")
        if match := _FACTOR.fullmatch(name):
            parts.setdefault(match["module"], {})[match["part"]] = tensor
        elif _OF_BASE.fullmatch(name):
            self.notes.append(f"{printable(name)}: is the base's own weight, and is left out")
        elif match := _WHOLE.fullmatch(name):
            self.whole[f"{match['module']}.{match['part']}"] = tensor
        else:
            raise InputError(f"{where} is no part of a LoRA, expected lora_A, lora_B or a weight of modules_to_save")

    def _pair(self, where: str, module: str, parts: Parts, about: PeftConfig) -> None:
        try:
            pairs = about.method.pairs(parts)
        except RuntimeError:  # Torch says so of shapes.
            pairs = []
        if not pairs_fit(pairs):
            raise InputError(f"{where} has factors of shapes {_shapes(parts)}, which do not fit")
        (a, b), *others = pairs
        length = parts.get(MAGNITUDE)
        if length is not None:
            if length.numel() != b.shape[0]:
                raise InputError(f"{where} has {length.numel()} magnitudes for {b.shape[0]} rows, which do not fit")
            self.magnitudes[f"{module}.weight"] = _transposed(magnitude_pair(length, a.shape[1]), about)
        scaled = [(a, b * about.scale(module)), *others]
        self.pairs[f"{module}.weight"] = [_transposed(pair, about) for pair in scaled]


def _check_parts(where: str, module: str, parts: Parts, about: PeftConfig, n_largest: int) -> None:
    """Refuses a module that has not the tensors of the method, in shapes that a weight can have."""
    problem = about.method.problem(parts)
    if problem is not None:
        raise InputError(f"{where} {problem}")
    if not shapes_fit(parts):
        raise InputError(f"{where} has factors of shapes {_shapes(parts)}, which do not fit")
    ranks = {tensor.shape[0] for name, tensor in parts.items() if name in RANKED} - {about.rank(module)}
    if ranks:
        raise InputError(
            f"{where} has rank {min(ranks)}, {CONFIG} says {about.rank(module)}. Another adapter's configuration?"
        )
    sides = kron_sides(parts)
    if max(sides) > n_largest:
        raise InputError(
            f"{where} is for a weight of {sides[0]} rows and {sides[1]} columns, the base's have at most {n_largest}"
        )


def _shapes(parts: Parts) -> str:
    return " and ".join(str(list(t.shape)) for t in parts.values())


def _transposed(pair: Pair, about: PeftConfig) -> Pair:
    """The rows of a transposed weight are the columns of B A."""
    a, b = pair
    return (b.T, a.T) if about.is_transposed else (a, b)


@dataclass(frozen=True)
class _Converted:
    """What the conversion made of the tensors, by the base's names.

    Args:
        products: a round of factors for each pair that the weights have.
        magnitudes: DoRA's lengths of rows, ([n_expert,] n_out).
        whole: as in _Modules.
    """

    products: list[dict[str, Factors]]
    magnitudes: dict[str, F32]
    whole: dict[str, F32]

    def stored_and_computed(self, method: Method) -> tuple[dict[str, Factors], dict[str, Computed]]:
        """The factors that are stored as they are, or how weights are computed."""
        if method.is_stored:
            return (self.products[0] if self.products else {}), {}
        names = self.products[0] if self.products else {}
        return {}, {
            name: Computed(tuple(made[name] for made in self.products), self.magnitudes.get(name)) for name in names
        }


def _computed_note(method: Method, computed: Mapping[str, Computed], base: GgufModel) -> str:
    """Says that the delta does not hold the adapter's own numbers."""
    rounded = sorted({base.type_of(name) for name in computed} - {"F32", "F16", "BF16"})
    note = f"{method.title}: {len(computed)} weights were computed from the base's and are compressed as those of a full fine-tune"
    if rounded and any(c.magnitude is not None for c in computed.values()):
        note += f"; its magnitudes are set on the base's weights as rounded to {', '.join(rounded)}, unless --reference gives others"
    return note


def _weights_file(path: Path) -> Path:
    found = [path / name for name in WEIGHTS if (path / name).exists()]
    if not found:
        raise InputError(f"{path}: has {CONFIG} and no {WEIGHTS[0]}. Incomplete download?")
    require_file(found[0])
    refuse_lfs_pointer(found[0])
    return found[0]


def _conversion(folder: Path, config: Mapping[str, Any], base: GgufModel, path: Path) -> Any:
    """The model class of llama.cpp's conversion for the base; it has no weights of its own."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if EMBEDDING in base.shapes:
        # Gemma's conversion cuts the embedding to its tokens, and counts these here.
        vocabulary = {str(i): i for i in range(base.shapes[EMBEDDING][-1])}
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))

    def make() -> Any:
        model_class = conversion_class(folder, base)
        return model_class(folder, gguf.LlamaFileType.ALL_F32, folder / "unused.gguf", eager=True)

    model = _call(path, f"read the base's configuration (see {OPTION})", make)
    architecture = str(model.gguf_writer.arch)
    if architecture != base.architecture:
        raise BaseMismatchError(
            f"{path}: its base's configuration is of architecture '{architecture}', base {base.label} has "
            f"'{base.architecture}'"
        )
    return model


def _convert(path: Path, model: Any, modules: _Modules, base: GgufModel, method: Method) -> _Converted:
    """Every tensor through the conversion, by the base's names.

    Raises:
        InputError: the conversion cannot take one, or keeps it.
        BaseMismatchError: it gives a weight that the base lacks.
    """
    products = []
    for i in range(max((len(pairs) for pairs in modules.pairs.values()), default=0)):
        sources = {name: pairs[i] for name, pairs in modules.pairs.items()}
        products.append(_factors_of(path, model, sources, base, is_cut=method.is_cut))
    magnitudes = _factors_of(path, model, modules.magnitudes, base)
    made = _through(path, model, modules.whole, base, lambda value: int(value.numel()))
    whole = {name: np.ascontiguousarray(value.numpy(), np.float32) for name, value in made.items()}
    return _Converted(products, {name: (m.u @ m.v[..., :1])[..., 0] for name, m in magnitudes.items()}, whole)


def _factors_of(
    path: Path, model: Any, sources: Mapping[str, Pair], base: GgufModel, *, is_cut: bool = False
) -> dict[str, Factors]:
    """Pairs through the conversion; where `is_cut`, each as wide as its weight."""
    pair_class = lora_module().LoraTorchTensor
    made = _through(
        path,
        model,
        {name: pair_class(a, b) for name, (a, b) in sources.items()},
        base,
        lambda pair: int(pair.get_lora_A_B()[1].numel()),
    )
    return {name: _factors(pair, base.shapes[name][0] if is_cut else None) for name, pair in made.items()}


def _through(
    path: Path, model: Any, sources: Mapping[str, Any], base: GgufModel, n_elements: Callable[[Any], int]
) -> dict[str, Any]:
    """Tensors of one kind through the conversion, by the base's names; `n_elements` counts what must not get lost."""
    found: dict[str, Any] = {}
    held = []  # Names of tensors that gave nothing by themselves: experts wait for each other.
    n_in = n_out = 0
    for source, tensor in sources.items():
        made = _call(path, f"convert '{printable(source)[:120]}'", partial(_modified, model, source, tensor))
        n_in += n_elements(tensor)
        if not made:
            held.append(source)
        for name, value in made:
            if name not in base.shapes:
                raise BaseMismatchError(f"{path}: {_lacks(name, source, base)}")
            found[name] = value
            n_out += n_elements(value)
    if held and n_out < n_in:
        raise InputError(f"{path}: {_kept(min(held))}")
    return found


def _modified(model: Any, name: str, tensor: Any) -> list[tuple[str, Any]]:
    """What a tensor becomes; as convert_lora_to_gguf.py does it."""
    kept = model.filter_tensors((name, lambda: tensor))
    if kept is None:
        return []
    name = kept[0]
    block = next((int(part) for part in name.split(".") if part.isdecimal()), None)
    return list(model.modify_tensors(tensor, name, block))


def _factors(pair: Any, n_in: int | None) -> Factors:
    a, b = (t.to(torch.float32).numpy() for t in pair.get_lora_A_B())
    a = np.broadcast_to(a, (*b.shape[:-2], *a.shape[-2:]))[..., :n_in]
    return Factors(np.ascontiguousarray(b), np.ascontiguousarray(a))


def _lacks(name: str, source: str, base: GgufModel) -> str:
    if name == OUTPUT:
        return _tied(source)
    return (
        f"'{printable(source)[:120]}' becomes '{printable(name)[:80]}', which base {base.label} lacks. "
        "Is it the model this was trained on?"
    )


def _tied(source: str) -> str:
    return (
        f"changes '{printable(source)[:120]}', which this base ties to its embedding. Use a base file that has its own "
        f"{OUTPUT}"
    )


def _kept(source: str) -> str:
    if "lm_head" in source:
        return _tied(source)
    if is_of_tower(source):
        return f"changes '{printable(source)[:120]}' of a vision or audio tower, which no delta carries. {MERGE}"
    what = "all projections of all experts of a layer, or of none," if "experts" in source else "it"
    return (
        f"llama.cpp's conversion gives nothing for '{printable(source)[:120]}': an adapter must change {what} to be "
        f"converted. {MERGE}"
    )


def _call(path: Path, what: str, fn: Callable[[], Any]) -> Any:
    """Runs a part of the conversion; whatever it raises becomes one line."""
    try:
        return fn()
    except (DqreloError, MemoryError):
        raise
    except Exception as e:
        reason = " ".join(printable(str(e)).split()) or type(e).__name__
        if isinstance(e, KeyError):
            reason = f"the configuration of its base has no {reason}"
        raise InputError(
            f"{path}: llama.cpp's conversion cannot {what}: {reason[:200]}. Is it the model this was trained on?"
        ) from e


def _chat_template(path: Path, notes: list[str]) -> str | None:
    """The template that the adapter was trained with, where its directory has one."""
    file = path / "chat_template.jinja"
    if file.exists():
        if file_problem(file) is None and file.stat().st_size <= _MAX_TEMPLATE_BYTES:
            return file.read_text(encoding="utf-8", errors="replace")
        notes.append(f"{file.name}: is no file of at most {_MAX_TEMPLATE_BYTES} bytes, and is left out")
    file = path / "tokenizer_config.json"
    if not file.exists():
        return None
    try:
        template = read_json(file).get("chat_template")
    except InputError as e:
        notes.append(f"{e}: is left out")
        return None
    return template if isinstance(template, str) else None
