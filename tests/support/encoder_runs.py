"""The same as architecture_runs for models that give embeddings, through llama-server's endpoint."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.merge import MergeOptions, merge
from dqrelo_gguf.convert.plan import Options
from tests.support.architecture_runs import BLEND, EIGHTH, EXACT, Figures, Prompts, Run
from tests.support.logits import Floats, Tokens, nmse
from tests.support.models import rewrite_gguf
from tests.support.server_fixtures import Server, serve

# A sequence of these models is read as a whole, and gives one vector.
OPTIONS = ("--embeddings", "--pooling", "mean", "-c", "2048", "-np", "4")


def embeddings(server: Server, part: list[Tokens], model: str | None = None) -> Floats:
    """[n_sequences, n_embd], not normalised."""
    body = {"input": [tokens.tolist() for tokens in part], "embd_normalize": -1}
    answer = server.post("/embeddings", body if model is None else {**body, "model": model})
    assert answer.status_code == 200, answer.text
    found = sorted(answer.json(), key=lambda item: int(item["index"]))
    return np.array([item["embedding"][0] for item in found], np.float32)


class EncoderRun(Run):
    def _over(self, base_type: str) -> Figures:
        base = self.gguf(self.checkpoint, base_type)
        deltas = [self.folder / f"{base.stem}-{name}.dq.gguf" for name in "ab"]
        for tuned, options, out in zip(self.tuned, (EIGHTH, EXACT), deltas, strict=True):
            self.outcome.n_carried = len(convert(Job(base, tuned, out), Options(**options)).weights)
        merged = base.with_suffix(".merged.gguf")
        merge(base, deltas[0], merged, MergeOptions(out_type="f32"))
        plain = rewrite_gguf(base, base.with_suffix(".plain.gguf"), types={"": "F32"})
        parts = Prompts.cut()
        expected = [
            self._alone(merged, parts.first),
            self._alone(self.gguf(self.tuned[1], "F32"), parts.second),
        ]
        base_alone = self._alone(base, parts.first)
        blended = base.with_suffix(".blended.gguf")
        merge(base, tuple(deltas), blended, MergeOptions(out_type="f32", scales=BLEND))
        blend = self._alone(blended, parts.first)
        with serve(base, self.folder, *OPTIONS, "--delta", f"a={deltas[0]}", "--delta", f"b={deltas[1]}") as server:
            requests = [(parts.first, "a"), (parts.second, "b"), (parts.first, base.name)]
            both = embeddings(
                server, parts.first, "+".join(f"{name}*{scale}" for name, scale in zip("ab", BLEND, strict=True))
            )
            a, b, none = (embeddings(server, part, model) for part, model in requests)
            with ThreadPoolExecutor() as pool:
                mixed = list(pool.map(lambda request: embeddings(server, *request), requests))
        return Figures(
            merged=nmse(a, expected[0]),
            tuned=nmse(b, expected[1]),
            mixed=max(nmse(mixed[0], expected[0]), nmse(mixed[1], expected[1])),
            blended=nmse(both, blend),
            rounding=nmse(base_alone, self._alone(plain, parts.first)),
            effect=min(nmse(none, expected[0]), nmse(none, blend)),
            is_base_kept=np.array_equal(none, base_alone),
        )

    def _alone(self, model: Path, part: list[Tokens]) -> Floats:
        with serve(model, self.folder, *OPTIONS) as server:
            return embeddings(server, part)
