"""Fine-tunes: a Hugging Face directory through llama.cpp's own conversion, or a GGUF.

The conversion is run lazily, as if to write an F32 GGUF, and its writer is never told to write: it holds the metadata
and, for each GGUF tensor, a graph of operations that is evaluated when the tensor is asked for. So the tensors have the
names, permutations and value changes that llama.cpp gives them, one at a time.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf._pin import conversion_module, gguf
from dqrelo_gguf.address.stream import RemoteDirectory
from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.errors import DqreloError, InputError, printable
from dqrelo_gguf.file.container import GGUFValue
from dqrelo_gguf.file.layout import type_name
from dqrelo_gguf.file.lfs import refuse_lfs_pointer
from dqrelo_gguf.file.values import INTEGER_TYPES
from dqrelo_gguf.model.base import EndTokens, GgufModel, Model, fold_scale_tensors
from dqrelo_gguf.model.directory import ModelDirectory
from dqrelo_gguf.model.lazy_tensors import as_floats, evaluate, sources_of
from dqrelo_gguf.model.real_weights import RealWeights
from dqrelo_gguf.model.streamed_weights import announce, read_elsewhere
from dqrelo_gguf.model.vocabulary import OUTPUT

_OTHER_HEAD = re.compile(r".*(For\w*(Classification|QuestionAnswering|MultipleChoice|Reward\w*)|RewardModel)")

_OWN_CODE = (
    ". Does it need its own code (auto_map)? That is not run here: if you trust it, convert it with llama.cpp's "
    "convert_hf_to_gguf.py and give the GGUF"
)


def open_checkpoint(path: str | os.PathLike[str], base: GgufModel) -> Model:
    """A fine-tune: a directory as `HfCheckpoint`, a file as `GgufModel`.

    Raises:
        InputError: nothing there that can be read.
    """
    if isinstance(path, RemoteDirectory):
        with path.errors():
            return HfCheckpoint(path.path, base, path)
    p = Path(path)
    if p.is_dir():
        return HfCheckpoint(p, base)
    if not p.exists():
        raise InputError(f"{p}: no such file or directory, expected a Hugging Face directory or a GGUF file")
    if p.suffix in (".safetensors", ".bin", ".json", ".pt", ".pth"):
        refuse_lfs_pointer(p)
        raise InputError(
            f"{p}: is a file of a model, expected a Hugging Face directory or a GGUF file. Give {p.parent}"
        )
    tuned = GgufModel(p)
    for name, (_, info) in tuned.infos.items():
        ours = base.infos.get(name)
        if info.type in INTEGER_TYPES and ours is not None and ours[1].type not in INTEGER_TYPES:
            raise InputError(
                f"{tuned.label}: '{name}' is stored as {type_name(info.type)}, base {base.label} has "
                f"{base.type_of(name)}: whole numbers without their scales are no weights"
            )
    return tuned


class HfCheckpoint:
    """A Hugging Face model directory.

    Args:
        path: the directory.
        base: its tensor names show with which options the conversion has to run.
        remote: where its shards lie, if the directory has their headers alone.

    Raises:
        InputError: a weight file is missing or truncated, or the conversion does not know the model.
    """

    def __init__(self, path: Path, base: GgufModel, remote: RemoteDirectory | None = None) -> None:
        self.path = path
        self.label = str(path) if remote is None else remote.label
        self._remote = remote
        if remote is not None:
            read_elsewhere(remote)
        sizes = {} if remote is None else {name: file.n_bytes for name, file in remote.shards.items()}
        self._directory = ModelDirectory.open(path, sizes)
        folder = Path(tempfile.mkdtemp(prefix="dqrelo-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)  # It also runs when the program ends.
        self._view = self._directory.make_view(folder)
        self._base = base
        self._refuse_other_head()
        self._is_fused = False
        self._lock = threading.Lock()  # The conversion's lazy tensors are for one thread.
        self._model = self._open()
        self.architecture = str(self._model.gguf_writer.arch)

    @property
    def notes(self) -> list[str]:
        """What of the directory is left out."""
        return self._directory.notes

    @property
    def end_tokens(self) -> EndTokens | None:
        return self._directory.end_tokens

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._folded[0]

    @property
    def name(self) -> str:
        """The name that the conversion finds in the model card or makes of the directory's."""
        field = self.field("general.name")
        return str(field.value) if field is not None else self.path.resolve().name

    def field_names(self) -> list[str]:
        return list(self._fields)

    def field(self, key: str) -> GGUFValue | None:
        return self._fields.get(key)

    def load(self, name: str, blocks: Blocks) -> npt.NDArray[np.float32]:
        """A weight's values as llama.cpp's conversion makes them; a new array."""
        del blocks  # The conversion has its own way of working.
        values = self._load(name)
        scale = self._folded[1].get(name)
        if scale is not None:
            values *= self._load(scale).reshape(-1, *[1] * (values.ndim - 1))
        return values

    @cached_property
    def tower(self) -> list[str]:
        """The tensors, by the names of the directory, that llama.cpp keeps in an mmproj: a vision or audio tower and its projector."""
        keeps = self._model.filter_tensors  # Its class may know better.
        return [name for name in self._directory.tensor_names if is_of_tower(name) and keeps((name, None)) is None]

    def load_tower(self) -> tuple[dict[str, GGUFValue], Iterator[tuple[str, npt.NDArray[np.float32]]]]:
        """The mmproj that the conversion would write: its metadata, and each tensor by its name in llama.cpp, one at a time."""
        model = self._call("open the tower of", lambda: _mmproj_model(self._view, self.label))
        with torch.inference_mode():
            self._call("convert the tower of", model.prepare_tensors)
            self._call("read the hyperparameters of the tower of", lambda: model.prepare_metadata(vocab_only=False))

        def values() -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
            for name, info in (each for tensors in model.gguf_writer.tensors for each in tensors.items()):
                with torch.inference_mode():
                    found = self._call(f"convert '{name}'", partial(evaluate, info.tensor))
                yield name, as_floats(found, info.dtype)

        return dict(model.gguf_writer.kv_data[0]), values()

    def write_gguf(self, outfile: Path) -> None:
        """Writes the model as llama.cpp's conversion does: matrices in F16, its own metadata and vocabulary."""
        assert self._infos is not None  # This finds out with which options.
        model = self._call("open", lambda: self._conversion(outfile))
        # The conversion shows a bar of its own.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), torch.inference_mode():  # noqa: PTH123
            self._call("write", model.write)

    def _load(self, name: str) -> npt.NDArray[np.float32]:
        info = self._infos[name]
        with self._lock, torch.inference_mode():
            if self._remote is not None:
                announce(self._remote, sources_of(info.tensor))
            values = self._call(f"convert '{name}'", lambda: evaluate(info.tensor))
        return as_floats(values, info.dtype)

    @cached_property
    def _infos(self) -> dict[str, Any]:
        infos = self._prepared()
        base_names = set(self._base.infos)
        if any(".attn_qkv." in name for name in base_names - set(infos)):
            # Fused by an option, and not by the architecture: that one would have fused here, too.
            self._is_fused = True
            self._model = self._open()
            infos = self._prepared()
        self._refuse_missing_head(infos)
        return infos

    def _prepared(self) -> dict[str, Any]:
        """The GGUF tensors of the conversion, each with its lazy value."""
        with torch.inference_mode():
            self._call("convert", self._model.prepare_tensors)
        return {name: info for tensors in self._model.gguf_writer.tensors for name, info in tensors.items()}

    @cached_property
    def _folded(self) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
        return fold_scale_tensors({name: tuple(reversed(info.shape)) for name, info in self._infos.items()})

    @cached_property
    def _fields(self) -> dict[str, GGUFValue]:
        assert self._infos is not None  # The conversion counts the parameters for its metadata.
        self._call(
            "read the hyperparameters and the tokenizer of", lambda: self._model.prepare_metadata(vocab_only=False)
        )
        return dict(self._model.gguf_writer.kv_data[0])

    def _open(self) -> Any:
        return self._call("open", self._conversion)

    def _conversion(self, outfile: Path | None = None) -> Any:
        return _conversion_model(self._view, self._base, self.label, fuse_qkv=self._is_fused, outfile=outfile)

    def _refuse_other_head(self) -> None:
        """A class with another head has learnt another task; a base that has such a head itself is its base."""
        if _OTHER_HEAD.fullmatch(self._class_name) and not any(name.startswith("cls.") for name in self._base.shapes):
            raise InputError(
                f"{self.label}: is a {self._class_name}, whose head base {self._base.label} lacks. Only a fine-tune of the whole "
                "language model is one of this base (AutoModelForCausalLM)"
            )

    def _refuse_missing_head(self, infos: Mapping[str, Any]) -> None:
        """A class without an output matrix leaves it out when it saves; the base's embedding must not stand for it."""
        is_tied = self._model.hparams.get("tie_word_embeddings", True)
        if OUTPUT in self._base.shapes and OUTPUT not in infos and not is_tied:
            raise InputError(
                f"{self.label}: has no output matrix (lm_head.weight), and config.json does not tie it to the embedding: it was "
                f"saved from {self._class_name or 'another class'}. Save it from its class with a head (AutoModelForCausalLM)"
            )

    @property
    def _class_name(self) -> str:
        classes = self._directory.config.get("architectures")
        return printable(str(classes[0])) if isinstance(classes, list) and classes else ""

    def _call(self, what: str, fn: Any) -> Any:
        """Runs a part of the conversion; whatever it raises becomes one line."""
        try:
            with contextlib.nullcontext() if self._remote is None else self._remote.errors():
                return fn()
        except (DqreloError, MemoryError):
            raise
        except Exception as e:
            reason = " ".join(str(e).replace(f"{self._view.parent}/", "").split()) or type(e).__name__
            if isinstance(e, KeyError):
                reason = f"its configuration, as this version of transformers reads it, has no {reason}"
            hint = _OWN_CODE if self._directory.has_code else ""
            text = f"{self.label}: llama.cpp's conversion cannot {what} this model: {reason[:300]}"
            raise InputError((self._directory.fault() or text) + hint) from e


def is_of_tower(name: str) -> bool:
    """Whether a tensor of a Hugging Face model belongs to what llama.cpp keeps in an mmproj: no language model has one of that name."""
    return conversion_module().TextModel.filter_tensors((name, None)) is None


def conversion_class(path: Path, base: GgufModel) -> Any:
    """The conversion's class for the config.json of a directory, without the layers that the base was converted without."""
    conversion = conversion_module()
    hparams = conversion.ModelBase.load_hparams(path, False)
    model_class = conversion.get_model_class(conversion.get_model_architecture(hparams, conversion.ModelType.TEXT))
    # It is set in a subclass: the switch is an attribute of the class, and must not stay set for other models.
    attributes: dict[str, Any] = {"model_arch": model_class.model_arch}
    if model_class.supports_mtp_export and not any(".nextn." in n for n in base.infos):
        attributes["no_mtp"] = True
    return type(model_class.__name__, (model_class,), attributes)


def _conversion_model(path: Path, base: GgufModel, label: str, *, fuse_qkv: bool, outfile: Path | None = None) -> Any:
    """The conversion's model object for a directory, with the options that the base's tensor names show.

    Without an outfile it is F32 and never written.
    """
    model_class = conversion_class(path, base)
    names = list(base.infos)
    model_class = type(
        model_class.__name__, (RealWeights, model_class), {"model_arch": model_class.model_arch, "label": label}
    )
    with torch.inference_mode():
        return model_class(
            path,
            gguf.LlamaFileType.ALL_F32 if outfile is None else gguf.LlamaFileType.MOSTLY_F16,
            outfile or path / "unused.gguf",
            hparams=None,
            fuse_qkv=fuse_qkv,
            fuse_gate_up_exps=any(".ffn_gate_up_exps." in n for n in names),
            sentence_transformers_dense_modules=any(n.startswith("dense_") for n in names),
        )


def _mmproj_model(path: Path, label: str) -> Any:
    """The conversion's object for the tower of a directory, F32 and never written."""
    conversion = conversion_module()
    architecture = conversion.get_model_architecture(
        conversion.ModelBase.load_hparams(path, False), conversion.ModelType.MMPROJ
    )
    model_class = conversion.get_model_class(architecture, mmproj=True)
    model_class = type(
        model_class.__name__, (RealWeights, model_class), {"model_arch": model_class.model_arch, "label": label}
    )
    with torch.inference_mode():
        return model_class(path, gguf.LlamaFileType.ALL_F32, path / "unused.gguf")
