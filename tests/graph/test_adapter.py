"""Logits of a converted LoRA adapter against llama.cpp's own --lora on the same base, and beside a full delta in one batch."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.runtime.programs import program
from tests.support.adapters import projections, upstreams_gguf, write_adapter
from tests.support.logits import TEXT, nmse, open_model
from tests.support.models import convert_hf, pico, pico_gguf, pico_tuned_gguf
from tests.support.tiny_architectures import ARCHITECTURES, write_base
from tests.support.tiny_llama import quantize
from tests.support.tiny_tokenizers import known_to_the_conversion

Floats = npt.NDArray[np.float32]
# Both multiply the factors with unrounded activations; their sums are in another order, and an F16 base rounds what comes next.
MAX_NMSE = 1e-6
N_CTX = 64


def kept_logits(base: Path, text: Path, *options: object) -> Floats:
    """The log-probabilities that llama-perplexity keeps, in 16 bits each."""
    out = text.with_suffix(".logits")
    command = [program("llama-perplexity"), "-m", base, "-f", text, "-c", N_CTX, "-t", 1, "--kl-divergence-base", out]
    subprocess.run(list(map(str, [*command, *options])), capture_output=True, timeout=300, check=True)
    raw = out.read_bytes()
    n_ctx, n_vocab, n_chunks = struct.unpack_from("<iii", raw, 8)
    rows = np.frombuffer(raw, "<u2", offset=20 + 4 * n_ctx * n_chunks).reshape(-1, 2 * ((n_vocab + 1) // 2) + 4)
    scale, least = rows[:, :4].copy().view("<f4").T[:, :, None]
    found: Floats = (rows[:, 4 : 4 + n_vocab] * scale + least).astype(np.float32)
    return found


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text((TEXT + " ") * 24)
    return path


@pytest.fixture(scope="module", params=["llama", "gemma3", "mixtral", "qwen3moe"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base in F16, an adapter in PEFT's form, and the same as GGUF."""
    folder, kind = tmp_path_factory.mktemp("adapter"), request.param
    if kind == "qwen3moe":
        model = write_base(ARCHITECTURES[kind], folder / "hf")
        with known_to_the_conversion():
            base = convert_hf(model, folder / "base.gguf")
    else:
        model, base = pico(kind), pico_gguf(kind)
    adapter = write_adapter(folder / "adapter", model, projections(model))
    return base, adapter, upstreams_gguf(adapter, model, folder / "lora.gguf")


def test_logits_are_those_of_stock_lora(models: tuple[Path, Path, Path], text: Path, tmp_path: Path) -> None:
    base, adapter, lora = models
    delta = tmp_path / "x.dq.gguf"
    convert(Job(base, adapter, delta))
    stock = kept_logits(base, text, "--lora", lora)
    assert nmse(kept_logits(base, text), stock) > 0.1  # The adapter does much, so that a part left out shows.
    assert nmse(kept_logits(base, text, "--delta", f"x={delta}"), stock) <= MAX_NMSE


def test_on_a_quantised_base_the_difference_is_that_bases_rounding(tmp_path: Path, text: Path) -> None:
    """Activations are rounded to 8 bits before Q8_0 weights, and the smallest difference rounds one the other way.

    So the same base without that rounding is the measure, and the delta is as near to it as stock is.
    """
    base = quantize(pico_gguf("llama"), tmp_path / "q8_0.gguf", "Q8_0")
    plain = quantize(base, tmp_path / "f32.gguf", "F32")
    adapter = write_adapter(tmp_path / "adapter", pico("llama"), projections(pico("llama")))
    lora = upstreams_gguf(adapter, pico("llama"), tmp_path / "lora.gguf")
    delta = tmp_path / "x.dq.gguf"
    convert(Job(base, adapter, delta))
    exact = kept_logits(plain, text, "--lora", lora)
    ours = kept_logits(plain, text, "--delta", f"x={delta}", "--delta-allow-other-base")
    assert nmse(ours, exact) <= MAX_NMSE
    of_stock = nmse(kept_logits(base, text, "--lora", lora), exact)
    assert nmse(kept_logits(base, text, "--delta", f"x={delta}"), exact) <= 1.5 * of_stock


def test_an_adapter_beside_a_full_delta_in_one_batch(tmp_path: Path) -> None:
    base = pico_gguf("llama")
    adapter = write_adapter(tmp_path / "adapter", pico("llama"), projections(pico("llama")))
    files = [tmp_path / "adapter.dq.gguf", tmp_path / "full.dq.gguf"]
    for source, file in zip((adapter, pico_tuned_gguf("llama")), files, strict=True):
        convert(Job(base, source, file))
    with open_model(base) as rt:
        tokens = rt.tokenize(TEXT)
        lora, full = (rt.load_delta(file) for file in files)
        assert lora.inert == []
        alone = [rt.logits([tokens] * 3, [delta] * 3)[0] for delta in (lora, full, None)]
        mixed = rt.logits([tokens] * 3, [lora, full, None])
        for got, expected in zip(mixed, alone, strict=True):
            assert nmse(got, expected) <= MAX_NMSE
        assert nmse(alone[0], alone[2]) > 0.1
