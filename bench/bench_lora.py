"""What does a LoRA adapter cost a token: as a delta of this project, and by llama.cpp's own `--lora`?

Three servers with as many slots, asked in turns: the base alone; the base with N adapters as deltas; the base with the same adapters
by `--lora`, chosen by each request. Each is asked by one stream, and by N streams at once, an adapter each. llama.cpp answers requests of different
adapters one after another; so its N streams are also measured with one adapter for all. Deltas and `--lora` run in the same llama-server.

Where a process has the base's weights in memory makes some per cent, so the server with deltas is also asked for its base alone, and that is
what deltas are compared with. The server without adapters shows that this base is none the slower for them; `--lora` is compared
with it, because a request without adapters of a server with `--lora` takes longer than one with an adapter.

  bench_lora.py --dir llama1b

makes random adapters of --rank for all projections of attention and MLP, where they are not in the directory yet.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from dqrelo_gguf.cli import run
from dqrelo_gguf.errors import InputError
from support.llama_servers import Setup, running
from support.machine import facts_of, heading
from support.model_folder import add_arguments, base_of, by_name, need_files, server_of
from support.random_loras import make_loras
from support.streams import Request, Stream, random_prompt, run_speed, run_streams, speed_of

N_CTX = 256
N_PROMPT = 16
N_WARM_UP = 4


@dataclass(frozen=True)
class Setting:
    """A row of the table: the server that it runs on, and what its streams ask for.

    Args:
        name: of the row.
        server: a key of `setups_of`.
        models, loras: of the streams.
    """

    name: str
    server: str
    models: Sequence[str | None]
    loras: Sequence[int | None]

    @property
    def has_adapter(self) -> bool:
        """Whether a stream asks for one."""
        return any(one is not None for one in (*self.models, *self.loras))


@dataclass(frozen=True)
class Run:
    """Streams that were asked at once.

    Args:
        tokens_per_s: generated tokens over the whole run, prompts included.
        step_ms: in which every stream gets one token; None where they did not run at the same time.
    """

    tokens_per_s: float
    step_ms: float | None


def settings_of(names: Sequence[str]) -> list[Setting]:
    """The rows for adapters of these names."""
    n = len(names)
    nothing = [None] * n
    return [
        Setting("base, no adapters loaded, 1 stream", "base", [None], [None]),
        Setting("base beside deltas, 1 stream", "deltas", [None], [None]),
        Setting("delta, 1 stream", "deltas", names[:1], [None]),
        Setting("--lora, 1 stream", "lora", [None], [0]),
        Setting(f"base, no adapters loaded, {n} streams", "base", nothing, nothing),
        Setting(f"base beside deltas, {n} streams", "deltas", nothing, nothing),
        Setting(f"{n} deltas, a stream each", "deltas", names, nothing),
        Setting(f"--lora, {n} adapters, a stream each", "lora", nothing, range(n)),
        Setting(f"--lora, one adapter, {n} streams", "lora", nothing, [0] * n),
    ]


def setups_of(args: argparse.Namespace, base: Path, loras: Sequence[Path], deltas: Sequence[Path]) -> dict[str, Setup]:
    """The servers by name."""
    server, n = server_of(args), len(loras)
    adapters = [text for path in loras for text in ("--lora", str(path))]
    return {
        "base": Setup(server, base, n, N_CTX, args.threads),
        "deltas": Setup(server, base, n, N_CTX, args.threads, by_name(deltas), ["--delta-allow-other-base"]),
        "lora": Setup(server, base, n, N_CTX, args.threads, extra=[*adapters, "--lora-init-without-apply"]),
    }


def measure(args: argparse.Namespace, setups: Mapping[str, Setup], settings: Sequence[Setting]) -> dict[str, list[Run]]:
    """The runs of every setting, one for each repetition. All servers are up, and settings take turns."""
    runs: dict[str, list[Run]] = {setting.name: [] for setting in settings}
    with running(list(setups.values())) as started:
        servers = dict(zip(setups, started, strict=True))
        n_vocab = started[0].n_vocab()
        prompts = [random_prompt(i, N_PROMPT, n_vocab) for i in range(args.adapters)]
        asked = {
            s.name: [
                Request(servers[s.server].url, model, prompt, args.n_predict, lora)
                for model, lora, prompt in zip(s.models, s.loras, prompts, strict=False)
            ]
            for s in settings
        }
        for requests in asked.values():
            run_streams([replace(one, n_predict=N_WARM_UP) for one in requests])
        for k in range(args.repeat):
            for setting in settings if k % 2 == 0 else settings[::-1]:
                print(f"repetition {k + 1}: {setting.name} ...", file=sys.stderr, flush=True)
                runs[setting.name].append(run_of(run_streams(asked[setting.name])))
    return runs


def run_of(streams: Sequence[Stream]) -> Run:
    """What a run of streams shows."""
    try:
        return Run(run_speed(streams), speed_of(streams).step_ms)
    except ValueError:
        return Run(run_speed(streams), None)


def table(runs: Mapping[str, Sequence[Run]], settings: Sequence[Setting]) -> str:
    """Medians, each beside that of its base with as many streams."""
    alone = {(s.server, len(s.models)): runs[s.name] for s in settings if not s.has_adapter}
    alone |= {("lora", n): of for (server, n), of in alone.items() if server == "base"}
    lines = [
        "| | ms a step | times the base | tokens/s of the whole run | of the base |",
        "|---|---|---|---|---|",
    ]
    for s in settings:
        base, own = alone[s.server, len(s.models)], runs[s.name]
        ms, ms_alone = ([r.step_ms for r in each if r.step_ms is not None] for each in (own, base))
        steps = (
            f"{median(ms):.1f} ({min(ms):.1f} to {max(ms):.1f}) | {median(ms) / median(ms_alone):.2f}"
            if ms and ms_alone
            else "- | -"
        )
        whole, whole_alone = (median(r.tokens_per_s for r in each) for each in (own, base))
        lines.append(f"| {s.name} | {steps} | {whole:.1f} | {whole / whole_alone:.2f} |")
    return "\n".join(lines)


def bench(args: argparse.Namespace) -> None:
    """Measures and prints."""
    base = base_of(args)
    need_files([base, args.dir / "base-f16.gguf"])
    if args.adapters < 2 or args.n_predict < 2:
        raise InputError("--adapters, --n-predict: must be at least 2")
    loras, deltas = make_loras(args.dir, args.dir / "base-f16.gguf", args.adapters, args.rank)
    settings = settings_of(list(by_name(deltas)))
    runs = measure(args, setups_of(args, base, loras, deltas), settings)
    facts = facts_of(server_of(args), base, args.threads) | {
        "adapters": f"{len(loras)} of rank {args.rank}",
        "repeats": args.repeat,
    }
    if args.output == "json":
        print(
            json.dumps({"facts": facts, "runs": {name: [asdict(r) for r in of] for name, of in runs.items()}}, indent=1)
        )
    else:
        print(heading(facts), table(runs, settings), sep="\n\n")


def main() -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, base="base-f16.gguf")
    parser.add_argument(
        "--adapters", type=int, default=8, metavar="N", help="adapters and streams (default: %(default)s)"
    )
    parser.add_argument("--rank", type=int, default=16, help="of adapters that are made (default: %(default)s)")
    parser.add_argument("--n-predict", type=int, default=32, help="tokens generated (default: %(default)s)")
    parser.add_argument("--repeat", "-r", type=int, default=3, help="runs of each setting (default: %(default)s)")
    args = parser.parse_args()
    return run(lambda: bench(args), "bench_lora.py")


if __name__ == "__main__":
    sys.exit(main())
