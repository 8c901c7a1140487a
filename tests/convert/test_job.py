"""convert: the whole way from a base and a fine-tune to a delta file, and everything that is refused on it."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.errors import DiskFullError, DqreloError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.fingerprint import Match
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.model.pairing import Selection
from dqrelo_gguf.progress import Silent
from tests.support.limits import file_size_limit
from tests.support.models import (
    EXAMPLES,
    Floats,
    convert_hf,
    edit_json,
    pico_gguf,
    pico_tuned,
    pico_tuned_gguf,
    read_gguf,
    rewrite_gguf,
    split_gguf,
    tuned_gguf,
)

Q = "blk.0.attn_q.weight"
EMBEDDING = "token_embd.weight"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "ft.dq.gguf"


def vectors_f32(path: Path) -> dict[str, str]:
    return {name: "F32" for name, w in read_gguf(path).items() if w.ndim == 1}


def errors_of(base: Path, tuned: Path, delta: Path) -> dict[str, tuple[float, float]]:
    """(stated, measured) error of each weight."""
    plain, target, reader = read_gguf(base), read_gguf(tuned), DeltaReader(delta)
    found = {}
    for w in reader.weights:
        D = (target[w.name] - plain[w.name]).astype(np.float64)
        measured = np.linalg.norm(D - reader.reconstruct(w.name)) / np.linalg.norm(D)
        found[w.name] = (w.error_delta, measured)
    return found


# --- what is written ---


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "qwen2", "gemma", "mixtral"])
def test_directory(kind: str, out: Path) -> None:
    result = convert(Job(pico_gguf(kind), pico_tuned(kind), out))
    reader = DeltaReader(out)
    reader.verify()
    assert reader.check_base(pico_gguf(kind)).match is Match.SAME_FILE
    assert {w.name for w in reader.weights} == set(read_gguf(pico_gguf(kind)))
    assert reader.ratio <= 1 / 8
    assert result.n_file_bytes == out.stat().st_size
    for name, (stated, measured) in errors_of(pico_gguf(kind), pico_tuned_gguf(kind), out).items():
        assert stated == pytest.approx(measured, abs=1e-4), name
        assert stated < 0.95, name  # random changes have flat spectra, and the embedding takes the bytes of the others
    predicted = {p.spec.name: p.predicted_error for p in result.planned}
    for w in result.weights:
        assert w.error_delta <= 1.1 * predicted[w.name] + 1e-6, w.name


def test_gguf_gives_the_same_deltas_as_its_directory(out: Path) -> None:
    convert(Job(pico_gguf("llama"), pico_tuned("llama"), out))
    other = out.with_name("gguf.dq.gguf")
    convert(Job(pico_gguf("llama"), pico_tuned_gguf("llama"), other))
    assert DeltaReader(out).content_hash == DeltaReader(other).content_hash


def test_tied_embedding_is_one_weight(out: Path) -> None:
    convert(Job(pico_gguf("llama-tied"), pico_tuned("llama-tied"), out))
    names = [w.name for w in DeltaReader(out).weights]
    assert EMBEDDING in names
    assert "output.weight" not in names


def test_same_input_same_bytes(out: Path) -> None:
    files = []
    for n_threads in (1, 2, 3):
        convert(Job(pico_gguf("llama"), pico_tuned("llama"), out, n_threads=n_threads, force=True))
        files.append(out.read_bytes())
    assert files[0] == files[1] == files[2]


def test_metadata(out: Path) -> None:
    fields = {"general.name": "My Tune", "tokenizer.ggml.eos_token_id": 7}
    tuned = rewrite_gguf(
        pico_tuned_gguf("llama"), out.with_name("t.gguf"), fields=fields, added_template="{{ messages }}"
    )
    convert(Job(pico_gguf("llama"), tuned, out))
    reader = DeltaReader(out)
    assert reader.name == "My Tune"
    assert reader.architecture == "llama"
    assert reader.base_name == GgufModel(pico_gguf("llama")).name
    assert reader.meta(fmt.KEY_CHAT_TEMPLATE) == "{{ messages }}"
    assert reader.meta("tokenizer.ggml.eos_token_id") == 7
    assert reader.meta(fmt.KEY_METHOD) == "best"
    assert reader.meta(fmt.KEY_REFERENCE) == "base"
    assert reader.options["ratio"] == "1/8"
    assert not [key for key in reader.keys() if key.startswith("llama.")]  # noqa: SIM118 - a list, not a dict


def test_sampling_defaults_of_a_directory_are_carried(tmp_path: Path, out: Path) -> None:
    tuned = shutil.copytree(pico_tuned("llama"), tmp_path / "t")
    edit_json(tuned / "generation_config.json", temperature=0.25, top_k=17, do_sample=True)
    convert(Job(pico_gguf("llama"), tuned, out))
    reader = DeltaReader(out)
    assert reader.meta("general.sampling.temp") == pytest.approx(0.25)
    assert reader.meta("general.sampling.top_k") == 17


def test_name_option(out: Path) -> None:
    convert(Job(pico_gguf("llama"), pico_tuned("llama"), out, name="other"))
    assert DeltaReader(out).name == "other"


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0", "BF16"])
def test_quantised_base(type_name: str, tmp_path: Path, out: Path) -> None:
    """The delta is against what the runtime runs, so it repairs the rounding of the base too."""
    values = {"blk.0.ffn_up.weight": np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)}
    full = rewrite_gguf(pico_gguf("llama"), tmp_path / "full.gguf", dict(values))
    base = rewrite_gguf(full, tmp_path / "b.gguf", {}, {"": type_name} | vectors_f32(full))
    tuned = tuned_gguf(full, tmp_path / "t.gguf")
    convert(Job(base, tuned, out))
    for name, (stated, measured) in errors_of(base, tuned, out).items():
        assert stated == pytest.approx(measured, abs=1e-4), name
    assert DeltaReader(out).check_base(base).match is Match.SAME_FILE


def test_split_base(tmp_path: Path, out: Path) -> None:
    convert(Job(pico_gguf("llama"), pico_tuned_gguf("llama"), out))
    whole = out.read_bytes()
    convert(Job(split_gguf(pico_gguf("llama"), tmp_path), pico_tuned_gguf("llama"), out, force=True))
    assert out.read_bytes() == whole


def test_reference(tmp_path: Path, out: Path) -> None:
    """Against the reference, for the quantised base: the tensors are the reference's, the identity the base's."""
    full = pico_gguf("llama")
    base = rewrite_gguf(full, tmp_path / "q8.gguf", {}, {"": "Q8_0"} | vectors_f32(full))
    convert(Job(base, pico_tuned("llama"), out, reference=full))
    with_reference = DeltaReader(out)
    assert with_reference.meta(fmt.KEY_REFERENCE) == full.name
    assert with_reference.check_base(base).match is Match.SAME_FILE
    assert with_reference.check_base(full).match is Match.SAME_MODEL
    convert(Job(full, pico_tuned("llama"), out, force=True))
    assert DeltaReader(out).content_hash == with_reference.content_hash


def test_reference_of_another_model_is_refused(tmp_path: Path, out: Path) -> None:
    rng = np.random.default_rng(1)
    noise = {n: rng.standard_normal(w.shape).astype(np.float32) for n, w in read_gguf(pico_gguf("llama")).items()}
    other = rewrite_gguf(pico_gguf("llama"), tmp_path / "other.gguf", dict(noise))
    refused(lambda: convert(Job(pico_gguf("llama"), pico_tuned("llama"), out, reference=other)), out, "--reference")


@functools.cache
def examples_base() -> Path:
    """The base of examples/tiny as F16."""
    return convert_hf(EXAMPLES / "base", pico_gguf("llama").with_name("examples-f16.gguf"))


def test_ratio_of_the_whole_file(out: Path) -> None:
    for ratio in (Fraction(1, 9), Fraction(1, 8), Fraction(1, 4)):
        convert(Job(examples_base(), EXAMPLES / "ft-words", out, force=True), Options(ratio=ratio))
        reader = DeltaReader(out)
        n_full = 2 * sum(w.n_elements for w in reader.weights)
        assert reader.n_bytes / n_full == pytest.approx(reader.ratio)
        assert 0.99 * ratio < reader.ratio <= ratio


def test_real_fine_tune_keeps_half_of_its_change(out: Path) -> None:
    result = convert(Job(examples_base(), EXAMPLES / "ft-words", out))
    matrices = [w for w in result.weights if w.n_vectors]
    assert max(w.error_delta for w in matrices) < 0.5
    assert min(w.cosine for w in matrices) > 0.5


@pytest.mark.parametrize("factor_type", ["bf16", "f32", "q8_0", "q4_0"])
def test_factor_types(factor_type: str, tmp_path: Path, out: Path) -> None:
    rng = np.random.default_rng(3)
    base_values = rng.standard_normal((512, 1024)).astype(np.float32)
    tuned_values = base_values + 0.1 * rng.standard_normal((512, 1024)).astype(np.float32)
    base = rewrite_gguf(pico_gguf("llama"), tmp_path / "b.gguf", {"w.weight": base_values})
    tuned = rewrite_gguf(base, tmp_path / "t.gguf", {"w.weight": tuned_values})
    convert(Job(base, tuned, out), Options(ratio=Fraction(1, 3), factor_type=factor_type))
    w = DeltaReader(out).weights[0]
    assert w.u_type is not None
    assert w.u_type.name == factor_type.upper()
    stated, measured = errors_of(base, tuned, out)["w.weight"]
    assert stated == pytest.approx(measured, abs=1e-4)


def test_vectors_paper(out: Path) -> None:
    convert(Job(pico_gguf("llama"), pico_tuned("llama"), out), Options(ratio=Fraction(1, 4), vectors="paper"))
    reader = DeltaReader(out)
    for w in reader.weights:
        if w.dense_type is not None:
            kept = reader.reconstruct(w.name)
            assert np.count_nonzero(kept) == kept.size // 4
            assert 0 < w.error_delta < 1
    n, m = 64, 96
    ranks = {w.name: w.rank for w in reader.weights}
    assert ranks["blk.0.ffn_up.weight"] == int(Fraction(3, 16) * n * m / (n + m))


def test_svd_exact_is_no_worse(out: Path) -> None:
    found = []
    for svd in ("randomised", "exact"):
        result = convert(Job(pico_gguf("llama"), pico_tuned("llama"), out, force=True), Options(svd=svd))  # type: ignore[arg-type]
        found.append({w.name: w.error_delta for w in result.weights})
    for name, error in found[1].items():
        assert error <= found[0][name] * 1.0001
        assert found[0][name] <= error * 1.005


def test_scale_of_the_base_is_part_of_the_weight(tmp_path: Path, out: Path) -> None:
    """NVFP4 and BitNet: the runtime computes scale * (W x), and the delta is against that."""
    w = read_gguf(pico_gguf("llama"))[Q]
    scale = np.array([0.25], np.float32)
    base = rewrite_gguf(pico_gguf("llama"), tmp_path / "b.gguf", {Q: w * 4, Q.replace("weight", "scale"): scale})
    convert(Job(base, pico_tuned_gguf("llama"), out))
    assert Q.replace("weight", "scale") not in {x.name for x in DeltaReader(out).weights}
    scaled = DeltaReader(out).reconstruct(Q)
    plain = rewrite_gguf(pico_gguf("llama"), tmp_path / "p.gguf", {Q: w})
    convert(Job(plain, pico_tuned_gguf("llama"), out, force=True))
    assert np.array_equal(scaled, DeltaReader(out).reconstruct(Q))


# --- what is left out, and said ---


def test_unchanged_weights_are_left_out_and_reported(tmp_path: Path, out: Path) -> None:
    plain = read_gguf(pico_gguf("llama"))
    same: dict[str, Floats | None] = {name: plain[name] for name in (EMBEDDING, "output_norm.weight")}
    tuned = rewrite_gguf(pico_tuned_gguf("llama"), tmp_path / "t.gguf", same)
    result = convert(Job(pico_gguf("llama"), tuned, out))
    assert sorted(result.identical) == sorted(same)
    assert not set(same) & {w.name for w in DeltaReader(out).weights}
    assert any(line.startswith("left out  2 weights equal") for line in result.summary())


def test_selection_is_reported(out: Path) -> None:
    selection = Selection.of(r"attn", r"norm")
    result = convert(Job(pico_gguf("llama"), pico_tuned("llama"), out), Options(selection=selection))
    names = {w.name for w in DeltaReader(out).weights}
    assert all("attn" in n and "norm" not in n for n in names)
    assert set(result.excluded) == set(read_gguf(pico_gguf("llama"))) - names
    assert any(line.startswith("excluded ") for line in result.summary())


def test_untied_output_of_a_tied_base(tmp_path: Path, out: Path) -> None:
    base, tuned = pico_gguf("llama-tied"), pico_tuned_gguf("llama-tied")
    embedding = read_gguf(tuned)[EMBEDDING]
    equal = rewrite_gguf(tuned, tmp_path / "equal.gguf", {"output.weight": embedding})
    result = convert(Job(base, equal, out))
    assert any("ties it" in note for note in result.notes)
    differs = rewrite_gguf(tuned, tmp_path / "differs.gguf", {"output.weight": embedding * 1.1})
    refused(
        lambda: convert(Job(base, differs, out, force=True)), out, "output.weight differs from token_embd", kept=True
    )


def test_tied_fine_tune_of_an_untied_base(tmp_path: Path, out: Path) -> None:
    """llama.cpp uses the embedding where there is no output matrix, so the delta of the output leads there."""
    values = read_gguf(pico_gguf("llama-tied"))[EMBEDDING]
    base = rewrite_gguf(pico_gguf("llama-tied"), tmp_path / "b.gguf", {"output.weight": values})
    convert(Job(base, pico_tuned_gguf("llama-tied"), out))
    reader = DeltaReader(out)
    D = (read_gguf(pico_tuned_gguf("llama-tied"))[EMBEDDING] - values).astype(np.float64)
    stated = {w.name: w.error_delta for w in reader.weights}
    for name in (EMBEDDING, "output.weight"):
        measured = np.linalg.norm(D - reader.reconstruct(name)) / np.linalg.norm(D)
        assert measured == pytest.approx(stated[name], abs=1e-4), name
        assert measured < 0.5, name


def test_renamed_tokens_are_noted(tmp_path: Path, out: Path) -> None:
    tokens = GgufModel(pico_gguf("llama")).file.value("tokenizer.ggml.tokens")
    tokens[100] = "<|renamed|>"
    tuned = rewrite_gguf(pico_tuned_gguf("llama"), tmp_path / "t.gguf", fields={"tokenizer.ggml.tokens": tokens})
    result = convert(Job(pico_gguf("llama"), tuned, out))
    assert any("1 tokens have another text" in note and "<|renamed|>" in note for note in result.notes)


# --- what is refused ---


def refused(run: Callable[[], object], out: Path, *parts: str, kept: bool = False) -> None:
    """The call fails with one line that has all parts, and leaves no file behind."""
    with pytest.raises(DqreloError) as e:
        run()
    for part in parts:
        assert part in str(e.value)
    assert "\n" not in str(e.value)
    left = [p.name for p in out.parent.iterdir() if p.suffix != ".gguf" or p == out]
    assert left == ([out.name] if kept else [])


def test_other_architecture(out: Path) -> None:
    job = Job(pico_gguf("llama"), pico_tuned("qwen2"), out)
    refused(lambda: convert(job), out, "architecture is 'qwen2'", "has 'llama'")


def test_other_vocabulary_size(tmp_path: Path, out: Path) -> None:
    values = read_gguf(pico_tuned_gguf("llama"))[EMBEDDING]
    tuned = rewrite_gguf(pico_tuned_gguf("llama"), tmp_path / "t.gguf", {EMBEDDING: np.vstack([values, values[:8]])})
    job = Job(pico_gguf("llama"), tuned, out)
    refused(
        lambda: convert(job),
        out,
        "vocabulary has 648 entries",
        "base",
        "has 640",
        "resize the base's embeddings to 648",
    )


def test_other_shape(tmp_path: Path, out: Path) -> None:
    tuned = rewrite_gguf(pico_tuned_gguf("llama"), tmp_path / "t.gguf", {Q: np.ones((64, 72), np.float32)})
    refused(lambda: convert(Job(pico_gguf("llama"), tuned, out)), out, Q, "base is 64x64", "fine-tune is 72x64")


def test_missing_weight(tmp_path: Path, out: Path) -> None:
    tuned = rewrite_gguf(pico_tuned_gguf("llama"), tmp_path / "t.gguf", {Q: None})
    refused(lambda: convert(Job(pico_gguf("llama"), tuned, out)), out, f"has no weight '{Q}'")
    convert(Job(pico_gguf("llama"), tuned, out), Options(selection=Selection(exclude="attn_q")))


def test_weight_that_the_base_lacks(tmp_path: Path, out: Path) -> None:
    bias = np.zeros(64, np.float32)
    tuned = rewrite_gguf(pico_tuned_gguf("llama"), tmp_path / "t.gguf", {"blk.0.attn_q.bias": bias + 1})
    refused(lambda: convert(Job(pico_gguf("llama"), tuned, out)), out, "blk.0.attn_q.bias", "lacks")
    zero = rewrite_gguf(pico_tuned_gguf("llama"), tmp_path / "z.gguf", {"blk.0.attn_q.bias": bias})
    assert convert(Job(pico_gguf("llama"), zero, out)).notes


def test_other_hyperparameter(tmp_path: Path, out: Path) -> None:
    tuned = rewrite_gguf(pico_tuned_gguf("llama"), tmp_path / "t.gguf", fields={"llama.rope.freq_base": 5e5})
    refused(lambda: convert(Job(pico_gguf("llama"), tuned, out)), out, "llama.rope.freq_base is 500000.0")
    longer = rewrite_gguf(pico_tuned_gguf("llama"), tmp_path / "l.gguf", fields={"llama.context_length": 4096})
    assert "context_length" in convert(Job(pico_gguf("llama"), longer, out)).notes[0]


def test_nan(tmp_path: Path, out: Path) -> None:
    values = read_gguf(pico_tuned_gguf("llama"))[Q].copy()
    values[0, :3] = np.nan
    tuned = rewrite_gguf(pico_tuned_gguf("llama"), tmp_path / "t.gguf", {Q: values})
    refused(lambda: convert(Job(pico_gguf("llama"), tuned, out)), out, Q, "3 of 4096 values are NaN")


def test_permuted_weight(tmp_path: Path, out: Path) -> None:
    values = read_gguf(pico_tuned_gguf("llama"))[Q]
    values = values.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(64, 64)
    tuned = rewrite_gguf(pico_tuned_gguf("llama"), tmp_path / "t.gguf", {Q: values})
    refused(lambda: convert(Job(pico_gguf("llama"), tuned, out)), out, Q, "in another order")


def test_adapter_as_base(out: Path, tmp_path: Path) -> None:
    delta = tmp_path / "a.dq.gguf"
    convert(Job(pico_gguf("llama"), pico_tuned("llama"), delta))
    refused(lambda: convert(Job(delta, pico_tuned("llama"), out)), out, "a.dq.gguf: is an adapter")
    refused(lambda: convert(Job(pico_gguf("llama"), delta, out)), out, "a.dq.gguf: is a delta file already")


def test_fine_tune_that_is_the_base(out: Path) -> None:
    refused(lambda: convert(Job(pico_gguf("llama"), pico_gguf("llama"), out)), out, "Is it the base itself?")


def test_existing_output(out: Path) -> None:
    out.write_text("old")
    refused(lambda: convert(Job(pico_gguf("llama"), pico_tuned("llama"), out)), out, "--force", kept=True)
    assert out.read_text() == "old"


def test_full_disk(out: Path) -> None:
    with file_size_limit(20_000), pytest.raises(DiskFullError):
        convert(Job(pico_gguf("llama"), pico_tuned_gguf("llama"), out))
    assert list(out.parent.iterdir()) == []


class _Interrupted(Silent):
    def __init__(self, title: str, n_all: int, *, unit: str = "params") -> None:
        super().__init__(title, n_all, unit=unit)
        self._title = title

    def step(self, n_params: int, name: str) -> None:  # noqa: ARG002
        if self._title == "converting":
            raise KeyboardInterrupt


def test_interrupt_leaves_nothing(out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(Job(pico_gguf("llama"), pico_tuned_gguf("llama"), out), phases=_Interrupted)
    assert list(out.parent.iterdir()) == []
