"""llama-server processes for benchmarks: started together, stopped together, with their memory and their logs."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests

START_SECONDS = 300
STOP_SECONDS = 30
MIB = 1 << 20
# It finds lines such as "llama_kv_cache:        CPU KV buffer size =    32.00 MiB".
_BUFFER = re.compile(r"(\S+):\s+(\S+)\s+(KV|RS|compute|output) buffer size =\s*([\d.]+) MiB")


@dataclass(frozen=True)
class Setup:
    """How one llama-server is started.

    Args:
        program: llama-server, of this project or stock.
        model: the GGUF.
        deltas: files by name.
        n_streams: slots, of n_ctx tokens each.
        extra: further arguments.
    """

    program: Path
    model: Path
    n_streams: int
    n_ctx: int
    n_threads: int
    deltas: Mapping[str, Path] = field(default_factory=dict)
    extra: Sequence[str] = ()

    def command(self, port: int) -> list[str]:
        """The command line."""
        words = [self.program, "-m", self.model, "--port", port, "-np", self.n_streams, "-t", self.n_threads]
        # The log of -lv 4 has the sizes of the buffers.
        words += ["-c", self.n_ctx * self.n_streams, "--cache-ram", 0, "-lv", 4, *self.extra]
        for name, path in self.deltas.items():
            words += ["--delta", f"{name}={path}"]
        return [str(w) for w in words]


@dataclass
class Server:
    """A running llama-server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait_until_ready(self) -> None:
        """Returns when it answers; ends the program if it does not start."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(f"{self.url}/health", timeout=5).ok:
                    return
            time.sleep(0.1)
        raise SystemExit(f"the server did not start: {self.process.args!r}\n{self.log.read_text()[-2000:]}")

    def buffers(self) -> dict[str, int]:
        """Bytes of its KV cache (`KV`) and of its compute and output buffers (`compute`)."""
        return buffer_bytes(self.log.read_text(errors="replace"))

    def n_vocab(self) -> int:
        """Tokens of its vocabulary."""
        models = requests.get(f"{self.url}/v1/models", timeout=30).json()
        return int(models["data"][0]["meta"]["n_vocab"])


def buffer_bytes(log: str) -> dict[str, int]:
    """Sums the buffers in a server's log by use. One that is reserved again, larger, replaces what it was before."""
    sizes: dict[str, dict[tuple[str, str, str], float]] = {"KV": {}, "compute": {}}
    for source, backend, kind, mib in _BUFFER.findall(log):
        sizes["KV" if kind in ("KV", "RS") else "compute"][source, backend, kind] = float(mib)
    return {use: round(MIB * sum(found.values())) for use, found in sizes.items()}


def pss_bytes(servers: Sequence[Server]) -> int:
    """Resident memory of all processes, pages that several share counted once (proportional set size)."""
    return sum(psutil.Process(s.process.pid).memory_full_info().pss for s in servers)


@contextlib.contextmanager
def running(setups: Sequence[Setup]) -> Iterator[list[Server]]:
    """Starts servers at once and yields them when all are ready."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        servers = []
        for i, (setup, port) in enumerate(zip(setups, _free_ports(len(setups)), strict=True)):
            log = Path(folder) / f"{i}.log"
            output = stack.enter_context(log.open("wb"))
            process = subprocess.Popen(setup.command(port), stdout=output, stderr=subprocess.STDOUT)
            stack.callback(_stop, process)
            servers.append(Server(f"http://127.0.0.1:{port}", process, log))
        for server in servers:
            server.wait_until_ready()
        yield servers


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(n)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
