"""Makes the golden files of format version 1. They must stay readable for ever.

Run this to add a file, not to change one:

python tests/data/make_golden.py DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from dqrelo_gguf.compress.signs import pack_signs
from dqrelo_gguf.file.container import GGUFValue, ValueType
from dqrelo_gguf.file.fingerprint import base_identity
from dqrelo_gguf.file.layout import WeightSpec
from dqrelo_gguf.file.metadata import DeltaMeta
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.file.weight_data import WeightData
from dqrelo_gguf.file.writer import DeltaWriter
from tests.support.delta_files import Type, meta, write_base, write_delta


def main(directory: Path) -> None:
    base = write_base(directory / "golden-base-v1.gguf")
    identity = base_identity(base)
    about = meta(
        identity,
        name="golden",
        chat_template="{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}",
        token_ids={
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.eot_token_id": 7,
        },
        add_bos=True,
        add_eos=False,
        general={
            "general.license": GGUFValue("mit", ValueType.STRING),
            "general.tags": GGUFValue(["tést", "golden"], ValueType.ARRAY, ValueType.STRING),
            "general.sampling.temp": GGUFValue(0.5, ValueType.FLOAT32),
        },
    )
    path = directory / "golden-v1.dq.gguf"
    write_delta(path, about=about)
    expected = {
        "base": {
            "digest": identity.digest,
            "sample_tensors": identity.sample_tensors,
            "samples": identity.samples.tolist(),
        },
        "delta": described(DeltaReader(path)),
    }
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (directory / "golden-v1.json").write_text(text + "\n", encoding="utf-8")
    worked_example(directory / "worked-example.dq.gguf")


def described(reader: DeltaReader) -> dict[str, Any]:
    """What any reader must find in a delta file: D_hat by its norm and by 16 values spread over it."""
    weights = {}
    for w in reader.weights:
        d_hat = reader.reconstruct(w.name).ravel()
        at = [(2 * t + 1) * d_hat.size // 32 for t in range(16)]
        weights[w.name] = {
            "ne": w.ne,
            "n_planes": w.n_planes,
            "rank": w.rank,
            "norm": float(np.linalg.norm(d_hat.astype(np.float64))),
            "values": d_hat[at].tolist(),
        }
    return {
        "name": reader.name,
        "ratio": reader.ratio,
        "content_hash": reader.content_hash,
        "n_bytes": reader.n_bytes,
        "weights": weights,
    }


def worked_example(path: Path) -> None:
    """The file that docs/format.md takes apart: one 8x2 weight, one plane, rank 1, F16 factors."""
    base = path.with_suffix(".base")
    write_base(base, tensors=[("blk.0.ffn_up.weight", (8, 2), Type.F32)])
    identity = base_identity(base)
    base.unlink()
    spec = WeightSpec("blk.0.ffn_up.weight", (8, 2), rank=1)
    about = DeltaMeta("llama", "tuned", "paper", "dqrelo-gguf 0.1.0", {}, "base", identity)
    signs = np.array([[1, -1, -1, 1, 1, -1, 1, -1], [-1, -1, -1, -1, 1, 1, 1, 1]])
    data = WeightData(
        [(pack_signs(signs), np.array([0.5]))],
        u=np.array([[1.0], [-2.0]]),
        v=np.array([[0.25, 0, 0, 0, 0, 0, 0, 1.0]]),
    )
    with DeltaWriter(path, about, [spec]) as writer:
        writer.write(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
