"""The passes of a conversion over all weights: check, measure and plan, encode and write."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from dqrelo_gguf.compress.budget import is_matrix
from dqrelo_gguf.compress.mixes import Spectrum
from dqrelo_gguf.convert.adapter import plan_factors, plan_vector
from dqrelo_gguf.convert.lanes import Lanes
from dqrelo_gguf.convert.plan import Options, Planned, plan_best, plan_exact, weighed, without_forms
from dqrelo_gguf.convert.planners import PLANNERS
from dqrelo_gguf.convert.result import WeightResult
from dqrelo_gguf.convert.tasks import Check, Encode, Measure
from dqrelo_gguf.convert.work import Packs, Weigh, Work
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.writer import DeltaWriter
from dqrelo_gguf.model.adapter import Adapter
from dqrelo_gguf.model.pairing import Pair
from dqrelo_gguf.model.parts import block_of
from dqrelo_gguf.model.selfcheck import Checked


@dataclass(frozen=True)
class Passes:
    """The passes over all weights.

    Args:
        work: the inputs.
        lanes: where they are computed.
        options: the method.
        weigh: the probe, or None.
        adapter: whose factors are stored as they are, or None.
    """

    work: Work
    lanes: Lanes
    options: Options
    weigh: Weigh | None = None
    adapter: Adapter | None = None

    def check(self) -> dict[str, Checked]:
        """Checks every weight before the first one is encoded."""
        checked, pairs = {}, self.work.pairs
        with self.work.phases("checking", sum(prod(p.ne) for p in pairs)) as progress:
            for pair, found in self.lanes.each(Check(self.options.min_cosine), pairs):
                checked[pair.name] = found
                progress.step(prod(pair.ne), pair.name)
        return checked

    def plan(self, pairs: list[Pair]) -> list[Planned]:
        """How each weight that changed is stored, in order; those that the method does not carry are left out."""
        if not pairs:
            raise InputError(
                f"{self.work.tuned.label}: nothing to convert: none of the {len(self.work.pairs)} weights that were compared "
                f"differs from base {self.work.base.label}. Is it the base itself?"
            )
        if self.adapter is not None:
            return self._with_adapter(pairs, self.adapter)
        n_blocks = 1 + max((block_of(name) or 0 for name in self.work.base.shapes), default=0)
        chosen = [p for p in pairs if self.options.selection.compresses(p.name, n_blocks)]
        if not chosen:
            raise InputError(
                f"--layers, --modules: no weight that changed is one of these. The base has the blocks 0 to {n_blocks - 1}"
            )
        only_vectors = len(chosen) < len(pairs) and not any(is_matrix(p.ne) for p in chosen)
        if only_vectors and self.options.vectors != "paper":
            raise InputError(
                "--layers, --modules: choose norms and other vectors only, which are kept whole. Use --vectors paper"
            )
        compressed = {p.pair.name: p for p in self._compressed(chosen)}
        exact = {p.name: plan_exact(p) for p in pairs if p not in chosen}
        found = compressed | exact
        return [found[p.name] for p in pairs if p.name in found]

    def _with_adapter(self, pairs: list[Pair], adapter: Adapter) -> list[Planned]:
        """Factors and vectors as they are; matrices that the adapter replaces are compressed, within a ratio of their own."""
        matrices = [p for p in pairs if p.name not in adapter.factors and is_matrix(p.ne)]
        planned = {p.pair.name: p for p in self._compressed(matrices)} if matrices else {}
        for p in pairs:
            if p.name in adapter.factors:
                planned[p.name] = plan_factors(p, adapter.factors[p.name])
            elif not is_matrix(p.ne):
                planned[p.name] = plan_vector(p)
        return [planned[p.name] for p in pairs if p.name in planned]

    def _compressed(self, pairs: list[Pair]) -> list[Planned]:
        if self.options.row.kind in PLANNERS:
            return PLANNERS[self.options.row.kind](pairs, self.options)
        spectra = self._measure([p for p in pairs if is_matrix(p.ne)])
        if self.options.importance == "norm":
            return plan_best(pairs, self.options, spectra)
        if self.weigh is None:
            raise InputError("--importance probe: needs the runtime, and none was given")
        probed = plan_best(pairs, self.options, without_forms(spectra))
        return plan_best(pairs, self.options, weighed(spectra, self.weigh(self.work, probed)))

    def _measure(self, pairs: list[Pair]) -> dict[str, Spectrum]:
        spectra = {}
        with self.work.phases("measuring", sum(prod(p.ne) for p in pairs)) as progress:
            for pair, spectrum in self.lanes.each(Measure(), pairs):
                spectra[pair.name] = spectrum
                progress.step(prod(pair.ne), pair.name)
        return spectra

    def write(
        self, writer: DeltaWriter, planned: list[Planned], checked: dict[str, Checked], packs: Packs | None = None
    ) -> list[WeightResult]:
        """Writes one weight after the other, encoded here or, where there are packs, before."""
        results = []
        with writer, self.work.phases("converting", sum(prod(p.pair.ne) for p in planned)) as progress:
            n_finished = len(writer.finished)
            for p, finished in zip(planned, writer.finished, strict=False):
                results.append(WeightResult.of(p, finished, checked[p.spec.name].cosine))
                progress.step(prod(p.pair.ne), p.spec.name)
            left = planned[n_finished:]
            for p, pack in self.lanes.each(Encode(self.options), left) if packs is None else packs(left):
                writer.write(pack)
                results.append(WeightResult.of(p, pack, checked[p.spec.name].cosine))
                progress.step(prod(p.pair.ne), p.spec.name)
        return results
