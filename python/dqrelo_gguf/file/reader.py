"""Reads a delta file. Nothing of a file is used before all of it is checked (docs/format.md, section 4)."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.resolve import local
from dqrelo_gguf.compress.codes import decode_columns, decode_rows
from dqrelo_gguf.compress.signs import unpack_signs
from dqrelo_gguf.compress.sparse import Sparse, unpack
from dqrelo_gguf.errors import BaseMismatchError, ShapeError, shown
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import GGUFFile, GGUFValue, TensorInfo
from dqrelo_gguf.file.fingerprint import BaseIdentity, Comparison, Match, compare
from dqrelo_gguf.file.layout import TensorSpec, Type, content_hash, ne_text, stripped_ne
from dqrelo_gguf.file.model_file import ModelFile
from dqrelo_gguf.file.options import parse_options
from dqrelo_gguf.file.quality import read_quality
from dqrelo_gguf.file.validate import WeightInfo, check_delta
from dqrelo_gguf.file.values import dequantised
from dqrelo_gguf.file.weight_data import SignFactors

__all__ = ["DeltaReader", "StoredWeight", "WeightInfo"]

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StoredWeight:
    """The arrays of one weight as they lie in the file, shaped as in writer.WeightData.

    F32 and F16 tensors have their numpy type; BF16 and quantised ones are uint8 with rows of blocks.
    """

    info: WeightInfo
    planes: tuple[tuple[npt.NDArray[np.uint8], F32], ...]
    cscale: F32 | None
    u: npt.NDArray[Any] | None
    v: npt.NDArray[Any] | None
    sign_factors: SignFactors | None
    dense: npt.NDArray[Any] | None
    sparse: Sparse | None


class DeltaReader:
    """An open delta file. Arrays are read from it when they are asked for.

    Everything that reads then raises an InputError where the file has shrunk or cannot be read.

    Args:
        path: the file.

    Raises:
        FormatError: it is no delta file, or a malformed one; the message names the tensor or key.
        InputError: it cannot be read.

    Example:
        >>> reader = DeltaReader("ft.dq.gguf")                      # doctest: +SKIP
        >>> d_hat = reader.reconstruct("blk.0.attn_q.weight")       # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = local(path, Kind.DELTA)
        self._file = GGUFFile(self.path)
        self.weights: list[WeightInfo]
        self.tensors: list[TensorSpec]
        self.weights, self.tensors = check_delta(self._file)
        self._by_name = {w.name: w for w in self.weights}
        self._specs = {t.name: t for t in self.tensors}

    # -- what the file says --

    def meta(self, key: str, default: Any = None) -> Any:
        """A metadata value, decoded; `default` where the key is absent."""
        return self._file.value(key, default)

    def keys(self) -> list[str]:
        """All metadata keys."""
        return self._file.keys()

    def fields(self) -> dict[str, GGUFValue]:
        """All metadata with its types, in file order."""
        found = ((key, self._file.field(key)) for key in self._file.keys())  # noqa: SIM118 - no dict
        return {key: value for key, value in found if value is not None}

    @property
    def tensor_infos(self) -> list[TensorInfo]:
        """The tensors as the header declares them, in file order."""
        return list(self._file.tensors.values())

    @property
    def data_start(self) -> int:
        """The byte of the file at which the tensors' data begins."""
        return self._file.data_start

    @property
    def name(self) -> str:
        return str(self.meta(fmt.KEY_NAME))

    @property
    def architecture(self) -> str:
        return str(self.meta(fmt.KEY_ARCHITECTURE))

    @property
    def base_name(self) -> str:
        return str(self.meta(fmt.KEY_BASE_NAME))

    @property
    def ratio(self) -> float:
        return float(self.meta(fmt.KEY_RATIO))

    @property
    def content_hash(self) -> str:
        return str(self.meta(fmt.KEY_CONTENT_HASH))

    @property
    def options(self) -> dict[str, Any]:
        """The converter's options."""
        return parse_options(self._file)

    @property
    def quality(self) -> dict[str, Any] | None:
        """What dqrelo-eval measured of it, by names of fields (quality.RULES); None where the file does not say."""
        return read_quality(self._file)

    @property
    def base(self) -> BaseIdentity:
        """The identity of the base that the delta was made for."""
        samples = np.array(self.meta(fmt.KEY_BASE_SAMPLES), np.float32)
        return BaseIdentity(self.meta(fmt.KEY_BASE_DIGEST), tuple(self.meta(fmt.KEY_BASE_SAMPLE_TENSORS)), samples)

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors' data, without padding."""
        return sum(w.n_bytes for w in self.weights)

    @property
    def n_file_bytes(self) -> int:
        return self._file.n_file_bytes

    # -- data --

    def weight(self, name: str) -> StoredWeight:
        """The stored arrays of a weight.

        Raises:
            KeyError: the delta does not change this weight.
        """
        info = self._by_name[name]
        planes = tuple(
            (self._array(name + fmt.suffix_sign(p)), self._array(name + fmt.suffix_scale(p)))
            for p in range(info.n_planes)
        )
        cscale, u, v, dense = (
            self._array(name + suffix) if name + suffix in self._file.tensors else None
            for suffix in (fmt.SUFFIX_CSCALE, fmt.SUFFIX_U, fmt.SUFFIX_V, fmt.SUFFIX_DENSE)
        )
        return StoredWeight(info, planes, cscale, u, v, self._sign_factors(info), dense, self._sparse(info))

    def reconstruct(self, name: str) -> F32:
        """D_hat of a weight (docs/format.md, section 1).

        Returns:
            f32 in the weight's numpy shape, the reverse of its ne.

        Raises:
            KeyError: the delta does not change this weight.
        """
        stored = self.weight(name)
        info = stored.info
        if stored.dense is not None:
            return stored.dense.astype(np.float32)
        if stored.sparse is not None:
            return unpack(stored.sparse, info.ne[0])
        d_hat = np.zeros(info.shape, np.float32)
        for bits, scale in stored.planes:
            # The scale is (..., 1) or (..., n_out), against (..., n_out, n_in).
            d_hat += scale[..., :, None] * unpack_signs(bits, info.ne[0])
        if stored.sign_factors is not None:
            codes = stored.sign_factors
            A = decode_columns(codes.u_bits, codes.u_scale, info.plane_ranks)
            d_hat += A @ decode_rows(codes.v_bits, codes.v_scale, info.plane_ranks)
        if stored.cscale is not None:
            d_hat *= stored.cscale[..., None, :]
        if stored.u is not None and stored.v is not None and info.u_type is not None and info.v_type is not None:
            where = f"{self.path}: a factor of '{name}'"
            d_hat += dequantised(stored.u, info.u_type, where) @ dequantised(stored.v, info.v_type, where)
        return d_hat

    def _sign_factors(self, info: WeightInfo) -> SignFactors | None:
        if not info.plane_ranks:
            return None
        v_bits, v_scale, u_bits, u_scale = (
            self._array(info.name + suffix)
            for suffix in (fmt.SUFFIX_VSIGN, fmt.SUFFIX_VSCALE, fmt.SUFFIX_USIGN, fmt.SUFFIX_USCALE)
        )
        where = f"{self.path}: a scale of '{info.name}'"
        v_scale, u_scale = (dequantised(scale, Type.BF16, where) for scale in (v_scale, u_scale))
        return SignFactors(v_bits, v_scale, u_bits, u_scale)

    def _sparse(self, info: WeightInfo) -> Sparse | None:
        if info.n_entries == 0:
            return None
        mask, count, column, start, entries, scale = (
            self._array(info.name + suffix) if info.name + suffix in self._file.tensors else None
            for suffix in (
                fmt.SUFFIX_MASK,
                fmt.SUFFIX_COUNT,
                fmt.SUFFIX_COLUMN,
                fmt.SUFFIX_START,
                fmt.SUFFIX_ENTRY,
                fmt.SUFFIX_ESCALE,
            )
        )
        assert start is not None
        assert entries is not None
        assert info.entry_type is not None
        if info.entry_type != Type.I8:
            entries = dequantised(entries, info.entry_type, f"{self.path}: the entries of '{info.name}'")
        return Sparse(start, entries, scale, mask, count, column)

    def _array(self, tensor: str) -> npt.NDArray[Any]:
        info = self._file.tensors[tensor]
        raw = self._file.raw(info)
        shape = tuple(reversed(self._specs[tensor].ne))
        dtype = {Type.F32: "<f4", Type.F16: "<f2", Type.I32: "<i4"}.get(info.type)
        return raw.view(dtype).reshape(shape) if dtype is not None else raw.reshape(*shape[:-1], -1)

    # -- checks on request --

    def damaged(self) -> list[str]:
        """The tensors whose data does not have the digest that the file declares."""
        sha256 = self.meta(fmt.KEY_TENSOR_SHA256)
        return [
            spec.name
            for spec, expected in zip(self.tensors, sha256, strict=True)
            if hashlib.sha256(self._file.raw(self._file.tensors[spec.name]).data).hexdigest() != expected
        ]

    def verify(self) -> None:
        """Checks the digest of every tensor and the content hash.

        Raises:
            FormatError: names the damaged tensors.
        """
        damaged = self.damaged()
        if damaged:
            more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
            names = ", ".join(f"'{shown(name)}'" for name in damaged[:3])
            self._file.fail(f"damaged: the data of {names}{more} does not have its declared SHA-256. Download it again")
        expected = content_hash(self.tensors, self.meta(fmt.KEY_TENSOR_SHA256))
        if expected != self.content_hash:
            self._file.fail(f"damaged: {fmt.KEY_CONTENT_HASH} is {self.content_hash}, its tensors have {expected}")

    def check_base(self, base: ModelFile | str | os.PathLike[str], allow_other_bytes: bool = True) -> Comparison:
        """Checks the delta against a base file.

        Args:
            base: the base, or the path of its file or of any of its shards.
            allow_other_bytes: accept another quantisation of the delta's base.

        Returns:
            How well they match; never OTHER_MODEL.

        Raises:
            BaseMismatchError: it is another model; both are named.
            ShapeError: a weight has another shape there.
        """
        model = base if isinstance(base, ModelFile) else ModelFile(base)
        both = (
            f"{self.path} is a delta of '{shown(self.base_name)}' ({shown(self.architecture)}), "
            f"{model.path} is '{shown(model.name)}' ({shown(model.architecture)})"
        )
        if model.architecture != self.architecture:
            raise BaseMismatchError(f"{both}: another architecture")
        for w in self.weights:
            info = model.tensors.get(w.name)
            if info is None:
                raise BaseMismatchError(f"{both}: it has no tensor '{shown(w.name)}'")
            if stripped_ne(info.ne) != w.ne:
                raise ShapeError(
                    f"{both}: '{shown(w.name)}' is {ne_text(stripped_ne(info.ne))} there, expected {ne_text(w.ne)}"
                )
        self._check_tokens(model)
        found = compare(self.base, model)
        if found.match is Match.OTHER_MODEL:
            raise BaseMismatchError(
                f"{both}: another model (correlation {found.correlation:.3f}, "
                f"expected at least {fmt.SAME_MODEL_CORRELATION})"
            )
        if found.match is Match.SAME_MODEL and not allow_other_bytes:
            raise BaseMismatchError(
                f"{both}: the same model in other bytes (correlation {found.correlation:.3f}), expected the same file"
            )
        return found

    def _check_tokens(self, model: ModelFile) -> None:
        """Every token that the file names is the base's."""
        n_tokens = len(model.value(fmt.MODEL_TOKENS, ()))
        ids = {key: self.meta(key) for key in fmt.TOKEN_ID_KEYS if self.meta(key) is not None}
        for key in (fmt.KEY_CHANGED_IDS, fmt.KEY_END_TOKENS):
            ids[key] = max(self.meta(key, ()), default=0)
        for key, token in ids.items():
            if n_tokens and token >= n_tokens:
                raise BaseMismatchError(
                    f"{self.path}: metadata key '{key}' has token {token}, but the base has {n_tokens} tokens. "
                    "Is this the base that the delta was made from?"
                )
