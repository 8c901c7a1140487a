"""merge: a plain GGUF that holds base + delta, with the fine-tune's metadata."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.cli.merge import main
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.merge import MergeOptions, merge
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.errors import BaseMismatchError, DiskFullError, FormatError, InputError, OutputExistsError
from dqrelo_gguf.file.container import GGUFValue, ValueType
from dqrelo_gguf.file.fingerprint import Match
from dqrelo_gguf.file.model_file import files_of
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.pairing import Selection
from dqrelo_gguf.progress import Silent
from dqrelo_gguf.runtime.session import Runtime
from tests.support.delta_files import Edited
from tests.support.gguf_files import copy_metadata, finish
from tests.support.limits import file_size_limit
from tests.support.models import pico_gguf, pico_tuned_gguf, read_gguf, rewrite_gguf, split_gguf
from tests.support.programs import need_program

Type = gguf.GGMLQuantizationType
TEMPLATE = "{{ messages[0]['content'] }}"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and a delta over it; the fine-tune has a template and an end token of its own."""
    directory = tmp_path_factory.mktemp("pair")
    writer_base = pico_gguf("llama")
    base = rewrite_gguf(writer_base, directory / "base.gguf", {}, {"": "F16"} | _vectors_f32(writer_base))
    fields = {"general.name": "My Tune", "tokenizer.ggml.eos_token_id": 7}
    tuned = rewrite_gguf(pico_tuned_gguf("llama"), directory / "tuned.gguf", fields=fields, added_template=TEMPLATE)
    delta = directory / "tune.dq.gguf"
    convert(Job(base, tuned, delta))
    return base, delta


def _vectors_f32(path: Path) -> dict[str, str]:
    return {name: "F32" for name, w in read_gguf(path).items() if w.ndim == 1}


def test_values_are_base_plus_delta(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, delta = pair
    result = merge(base, delta, tmp_path / "m.gguf", MergeOptions("f32"))
    assert result.comparison.match is Match.SAME_FILE
    assert result.n_file_bytes == (tmp_path / "m.gguf").stat().st_size
    merged, plain, reader = read_gguf(tmp_path / "m.gguf"), read_gguf(base), DeltaReader(delta)
    assert list(merged) == list(plain)
    assert {w.name for w in reader.weights} == set(plain)
    for name, values in plain.items():
        assert np.array_equal(merged[name], values + reader.reconstruct(name)), name


@pytest.mark.parametrize("out_type", ["f32", "f16", "q8_0"])
def test_llama_quantize_takes_a_merged_model(out_type: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """It pads to 32 bytes whatever a file's general.alignment says, so nothing could load what it made of another one."""
    base, delta = pair
    merge(base, delta, tmp_path / "m.gguf", MergeOptions(out_type))
    command = [need_program("llama-quantize"), "--allow-requantize", tmp_path / "m.gguf", tmp_path / "q.gguf", "Q4_0"]
    subprocess.run([*map(str, command), "1"], check=True, capture_output=True)
    merged, quantised = read_gguf(tmp_path / "m.gguf"), read_gguf(tmp_path / "q.gguf")
    for name, values in merged.items():
        assert np.linalg.norm(quantised[name] - values) <= 0.12 * np.linalg.norm(values), name
    with Runtime(str(tmp_path / "q.gguf"), n_threads=1) as runtime:
        assert np.isfinite(runtime.logits([1, 2, 3])).all()


def test_merged_is_nearer_to_the_fine_tune_than_the_base(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, delta = pair
    merge(base, delta, tmp_path / "m.gguf", MergeOptions("f32"))
    merged, plain, tuned = read_gguf(tmp_path / "m.gguf"), read_gguf(base), read_gguf(pico_tuned_gguf("llama"))
    for name, target in tuned.items():
        stated = next(w.error_delta for w in DeltaReader(delta).weights if w.name == name)
        measured = np.linalg.norm(merged[name] - target) / np.linalg.norm(plain[name] - target)
        assert measured == pytest.approx(stated, abs=1e-4), name


@pytest.mark.parametrize("out_type", ["f32", "f16", "bf16", "q8_0"])
def test_types(out_type: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    merge(*pair, tmp_path / "m.gguf", MergeOptions(out_type))
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    for t in reader.tensors:
        n_dims = sum(n > 1 for n in t.shape.tolist())
        assert t.tensor_type == (Type.F32 if n_dims == 1 else Type[out_type.upper()]), t.name
    exact = read_gguf_f32(pair, tmp_path)
    for name, values in read_gguf(tmp_path / "m.gguf").items():
        step = {"f32": 0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 127}[out_type]
        assert np.abs(values - exact[name]).max() <= step * np.abs(exact[name]).max(), name


def read_gguf_f32(pair: tuple[Path, Path], tmp_path: Path) -> dict[str, np.ndarray]:
    merge(*pair, tmp_path / "f32.gguf", MergeOptions("f32"))
    return read_gguf(tmp_path / "f32.gguf")


def test_metadata_is_the_fine_tunes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, delta = pair
    merge(base, delta, tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    plain = gguf.GGUFReader(base).fields
    assert fields["general.name"].contents() == "My Tune"
    assert fields["tokenizer.chat_template"].contents() == TEMPLATE
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 7
    assert fields["general.type"].contents() == "model"
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_F16
    assert not [key for key in fields if key.startswith(("dqrelo.", "adapter.", "split."))]
    for key in plain:
        if key.startswith(("llama.", "tokenizer.ggml.tokens", "tokenizer.ggml.scores")):
            assert fields[key].contents() == plain[key].contents()
            assert fields[key].types == plain[key].types


def _add(delta: Path, target: Path, fields: dict[str, GGUFValue]) -> Path:
    edited = Edited(delta)
    edited.fields.update(fields)
    return edited.save(target)


def test_templates_are_all_the_fine_tunes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A template of the base for tools must not stand beside the fine-tune's: llama.cpp would use both."""
    base, delta = pair
    texts = {"tokenizer.chat_template": "base", "tokenizer.chat_template.tool_use": "base's tools"}
    with_tools = tmp_path / "base.gguf"
    writer = gguf.GGUFWriter(with_tools, "")
    reader = gguf.GGUFReader(base)
    copy_metadata(reader, writer)
    writer.add_chat_template(
        [{"name": "default", "template": "base"}, {"name": "tool_use", "template": "base's tools"}]
    )
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    finish(writer)
    merge(with_tools, delta, tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == TEMPLATE
    assert "tokenizer.chat_template.tool_use" not in fields
    assert "tokenizer.chat_templates" not in fields

    names = GGUFValue(["rag", "tool_use"], ValueType.ARRAY, ValueType.STRING)
    own = {f"tokenizer.chat_template.{name}": GGUFValue(name, ValueType.STRING) for name in names.value}
    both = _add(delta, tmp_path / "both.dq.gguf", own | {"tokenizer.chat_templates": names})
    merge(with_tools, both, tmp_path / "both.gguf")
    fields = gguf.GGUFReader(tmp_path / "both.gguf").fields
    assert {key: fields[key].contents() for key in own} == {key: value.value for key, value in own.items()}
    assert fields["tokenizer.chat_templates"].contents() == ["rag", "tool_use"]

    silent = Edited(delta)
    del silent.fields["tokenizer.chat_template"]
    merge(with_tools, silent.save(tmp_path / "silent.dq.gguf"), tmp_path / "silent.gguf")
    fields = gguf.GGUFReader(tmp_path / "silent.gguf").fields
    assert {key: fields[key].contents() for key in texts} == texts


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([7, 298], (7, 298, None)),
        ([298], (298, None, None)),
        ([298, 7, 299], (7, 298, 299)),
        ([298, 299, 300, 301], (298, 299, 300)),
    ],
)
def test_end_tokens_get_the_keys_of_a_plain_model(
    ids: list[int], expected: tuple[int | None, ...], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, delta = pair
    listed = GGUFValue(ids, ValueType.ARRAY, ValueType.UINT32)
    merge(base, _add(delta, tmp_path / "d.dq.gguf", {"dqrelo.end_token_ids": listed}), tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    keys = [f"tokenizer.ggml.{role}_token_id" for role in ("eos", "eot", "eom")]
    assert tuple(fields[key].contents() if key in fields else None for key in keys) == expected


def test_split_base(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, delta = pair
    first = split_gguf(base, tmp_path)
    merge(base, delta, tmp_path / "whole.gguf")
    merge(first, delta, tmp_path / "split.gguf")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "split.gguf").read_bytes()


def test_partial_delta_leaves_the_rest(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base = pair[0]
    convert(Job(base, pico_tuned_gguf("llama"), tmp_path / "p.dq.gguf"), Options(selection=Selection(include="attn_q")))
    result = merge(base, tmp_path / "p.dq.gguf", tmp_path / "m.gguf", MergeOptions("f32"))
    assert result.n_changed == 2
    merged, plain = read_gguf(tmp_path / "m.gguf"), read_gguf(base)
    assert {name for name in plain if not np.array_equal(plain[name], merged[name])} == {
        "blk.0.attn_q.weight",
        "blk.1.attn_q.weight",
    }


def test_other_quantisation_needs_the_flag(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, delta = pair
    other = rewrite_gguf(base, tmp_path / "q8.gguf", {}, {"": "Q8_0"} | _vectors_f32(base))
    with pytest.raises(BaseMismatchError, match="--allow-other-base"):
        merge(other, delta, tmp_path / "m.gguf")
    result = merge(other, delta, tmp_path / "m.gguf", MergeOptions(allow_other_base=True))
    assert result.comparison.match is Match.SAME_MODEL


def test_other_model_is_refused_with_the_flag(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, delta = pair
    rng = np.random.default_rng(0)
    noise = {n: rng.standard_normal(w.shape).astype(np.float32) for n, w in read_gguf(base).items()}
    other = rewrite_gguf(base, tmp_path / "other.gguf", dict(noise))
    with pytest.raises(BaseMismatchError, match="another model"):
        merge(other, delta, tmp_path / "m.gguf", MergeOptions(allow_other_base=True))


def test_damaged_delta_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, delta = pair
    raw = bytearray(delta.read_bytes())
    raw[-100] ^= 1
    (tmp_path / "bad.dq.gguf").write_bytes(raw)
    with pytest.raises(FormatError, match="damaged"):
        merge(base, tmp_path / "bad.dq.gguf", tmp_path / "m.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.dq.gguf"]


def test_existing_output_needs_force(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    out.write_text("old")
    with pytest.raises(OutputExistsError, match="--force"):
        merge(*pair, out)
    assert out.read_text() == "old"
    merge(*pair, out, MergeOptions(force=True))
    assert out.read_bytes()[:4] == b"GGUF"


def test_full_disk(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DiskFullError, match=r"needs .* bytes"):
        merge(*pair, tmp_path / "m.gguf")


def test_disk_that_fills_up_leaves_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with file_size_limit(100_000), pytest.raises(DiskFullError):
        merge(*pair, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


class _Interrupted(Silent):
    def step(self, n_params: int, name: str) -> None:  # noqa: ARG002
        raise KeyboardInterrupt


def test_interrupt_leaves_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        merge(*pair, tmp_path / "m.gguf", phases=_Interrupted)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_appears_meanwhile_is_kept(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"

    class Another(Silent):
        def step(self, n_params: int, name: str) -> None:  # noqa: ARG002
            out.write_text("theirs")

    with pytest.raises(OutputExistsError, match="another program"):
        merge(*pair, out, phases=Another)
    assert out.read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_command(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, delta = pair
    out = tmp_path / "m.gguf"
    assert main([str(base), str(delta), "-o", str(out), "--outtype", "q8_0"]) == 0
    assert "weights changed" in capsys.readouterr().out
    assert main([str(base), str(delta), "-o", str(out)]) == 1
    assert capsys.readouterr().err == f"dqrelo-merge: error: {out}: exists. Use --force to replace it\n"


@pytest.fixture(scope="module")
def second(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another delta over the same base, of one weight alone."""
    directory = tmp_path_factory.mktemp("second")
    tuned = rewrite_gguf(pico_tuned_gguf("llama"), directory / "other.gguf", fields={"general.name": "Other"})
    delta = directory / "other.dq.gguf"
    convert(Job(pair[0], tuned, delta), Options(rank=2, selection=Selection(include="attn_q")))
    return delta


def test_several_deltas_are_added_each_with_its_scale(pair: tuple[Path, Path], second: Path, tmp_path: Path) -> None:
    base, delta = pair
    result = merge(base, [delta, second], tmp_path / "m.gguf", MergeOptions("f32", scales=(0.5, -2.0)))
    merged, plain = read_gguf(tmp_path / "m.gguf"), read_gguf(base)
    readers = DeltaReader(delta), DeltaReader(second)
    assert result.n_changed == len(plain)
    assert 0 < len(readers[1].weights) < len(plain)
    for name, values in plain.items():
        expected = values + np.float32(0.5) * readers[0].reconstruct(name)
        if name in {w.name for w in readers[1].weights}:
            expected = expected - np.float32(2.0) * readers[1].reconstruct(name)
        assert np.allclose(merged[name], expected, rtol=0, atol=1e-6), name
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["general.name"].contents() == "0.5 My Tune + -2 Other"
    assert fields["tokenizer.chat_template"].contents() == TEMPLATE


def test_command_takes_several_deltas(
    pair: tuple[Path, Path], second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, delta = pair
    files = [str(base), str(delta), str(second)]
    assert main([*files, "-o", str(tmp_path / "m.gguf"), "--scales", "0.5", "-0.4"]) == 0
    for scales, message in (
        (["0.5"], "--scales: got 1 for 2 deltas, expected one for each"),
        (["0.5", "nan"], "--scales: got nan, expected finite numbers"),
        (["inf", "1"], "--scales: got inf, expected finite numbers"),
    ):
        capsys.readouterr()
        assert main([*files, "-o", str(tmp_path / "bad.gguf"), "--scales", *scales]) == 1
        assert capsys.readouterr().err == f"dqrelo-merge: error: {message}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("is_shard", [False, True])
@pytest.mark.parametrize("is_delta", [False, True])
def test_an_input_is_not_replaced(pair: tuple[Path, Path], tmp_path: Path, is_delta: bool, is_shard: bool) -> None:
    base, delta = pair
    shards = files_of(split_gguf(base, tmp_path, 2)) if is_shard else [base]
    target = delta if is_delta else shards[-1]
    before = target.read_bytes()
    (tmp_path / "link").symlink_to(target)
    for output in (target, tmp_path / "link"):
        with pytest.raises(InputError, match="is read by this command"):
            merge(shards[0], delta, output, MergeOptions(force=True, allow_other_base=True))
    assert target.read_bytes() == before
