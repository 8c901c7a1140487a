"""What Kubernetes controllers of adapters send to a model server, and what they read from it.

The requests are written after the sources of:
- KubeAI: kubeai-project/kubeai, internal/vllmclient/client.go (load and unload, and which refusals count as done), internal/modelcontroller/adapters.go (the
  path is /adapters/NAME, a directory), internal/apiutils/request.go (MODEL_ADAPTER at KubeAI's door becomes ADAPTER at the server's)
- vLLM production stack: vllm-project/production-stack, operator/internal/controller/loraadapter_controller.go (load, unload, the list of models)
- Gateway API inference extension: kubernetes-sigs/gateway-api-inference-extension, tools/dynamic-lora-sidecar/sidecar/sidecar.py (health, list, load,
  unload) and pkg/epp/backend/metrics/metrics.go (what is read from /metrics)
- llm-d: llm-d/llm-d-inference-scheduler, pkg/epp/framework/plugins/datalayer/extractor/metrics/extractor.go (the same, names trimmed)
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.delta_server import CONTEXT, complete, error, idle_row, states, stream, text
from tests.support.keys import MASTER, ask, serve_keys
from tests.support.programs import need_program
from tests.support.server_fixtures import Artefacts, Server, serve

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
SAMPLE = re.compile(r'(?P<name>[a-z_:]+)(?:\{(?P<labels>(?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\})? (?P<value>\S+)')
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')


def unescaped(value: str) -> str:
    return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], value)


def samples(text: str, family: str) -> list[tuple[dict[str, str], float]]:
    """The samples of one family of the exposition format, as a parser of Prometheus has them."""
    found = []
    for line in text.splitlines():
        match = SAMPLE.fullmatch(line)
        if not line.startswith("#"):
            assert match, line
            if match["name"] == family:
                labels = {name: unescaped(value) for name, value in LABEL.findall(match["labels"] or "")}
                found.append((labels, float(match["value"])))
    return found


def metrics(server: Server) -> str:
    return requests.get(server.url + "/metrics", timeout=60).content.decode()


def gauge(text: str, family: str) -> float:
    assert f"# TYPE {family} gauge" in text
    ((labels, value),) = samples(text, family)
    assert labels == {"model_name": "base"}
    return value


def adapters(text: str) -> tuple[int, set[str], set[str]]:
    """max_lora and the running and waiting adapters, as the gateway's picker takes them: the latest sample by its value."""
    assert "# TYPE vllm:lora_requests_info gauge" in text
    labels, value = max(samples(text, "vllm:lora_requests_info"), key=lambda sample: sample[1])
    assert abs(value - time.time()) < 3600
    running, waiting = (
        {name.strip() for name in labels[key].split(",") if name.strip()}
        for key in ("running_lora_adapters", "waiting_lora_adapters")
    )
    return int(labels["max_lora"]), running, waiting


# --- loading and unloading


def kubeai_accepts(answer: requests.Response, *words: str) -> bool:
    """Whether KubeAI's client takes the answer for success."""
    if answer.status_code <= 299:
        return True
    failure = answer.json()["error"]
    known = answer.status_code == 400 and failure["type"] == "InvalidUserInput"
    return known and all(word in failure["message"] for word in words)


def test_kubeai_loads_and_unloads(delta_server: Server, delta_texts: dict[str, str]) -> None:
    folder = delta_server.log.parent / "dir"
    (folder / "sql").mkdir()
    shutil.copyfile(folder / "json.dq.gguf", folder / "sql" / "model.dq.gguf")
    (folder / "sql" / "README.md").write_text("what a repository has besides")
    body = {"lora_name": "sql", "lora_path": str(folder / "sql")}
    assert kubeai_accepts(delta_server.post(LOAD, body))
    assert text(delta_server, "sql") == delta_texts["json"]
    # The label of the pod could not be written, so it comes again.
    assert kubeai_accepts(delta_server.post(LOAD, body), "already", "loaded")
    assert kubeai_accepts(delta_server.post(UNLOAD, {"lora_name": "sql"}))
    assert kubeai_accepts(delta_server.post(UNLOAD, {"lora_name": "sql"}), "cannot be found")
    assert not kubeai_accepts(delta_server.post(LOAD, body | {"lora_path": "/adapters/gone"}), "already", "loaded")


def test_production_stack_loads_lists_and_unloads(artefacts: Artefacts, delta_folder: Path, tmp_path: Path) -> None:
    options = ("--deltas-dir", delta_folder, "--api-key", MASTER, *CONTEXT)
    with serve(artefacts.base, tmp_path, *options) as server:

        def send(method: str, path: str, **body: Any) -> requests.Response:
            return ask(server, method, path, MASTER, **({"json": body} if body else {}))

        body = {"lora_name": "sql", "lora_path": str(delta_folder / "json.dq.gguf")}
        assert send("POST", LOAD, **body).status_code == 200
        again = send("POST", LOAD, **body)
        assert again.status_code == 400
        assert again.json()["type"] == "InvalidUserInput"
        assert "has already been loaded" in again.json()["message"]
        models = send("GET", "/v1/models").json()["data"]
        loaded = {model["id"]: model["root"] for model in models if model["parent"] is not None}
        assert loaded["sql"] == str(delta_folder / "json.dq.gguf")
        assert all({"id", "object", "created", "owned_by", "root", "parent"} <= model.keys() for model in models)
        assert send("POST", UNLOAD, lora_name="sql").status_code == 200
        assert "sql" not in {model["id"] for model in send("GET", "/v1/models").json()["data"]}


def test_dynamic_lora_sidecar_reconciles(delta_server: Server) -> None:
    assert requests.get(delta_server.url + "/health", timeout=60).status_code == 200

    def registered() -> set[str]:
        return {model["id"] for model in delta_server.get("/v1/models")["data"]}

    body = {"lora_name": "sql", "lora_path": "json.dq.gguf", "base_model_name": "base"}
    assert "sql" not in registered()
    assert delta_server.post(LOAD, body).status_code == 200
    assert "sql" in registered()
    assert delta_server.post(UNLOAD, {"lora_name": "sql"}).status_code == 200
    assert "sql" not in registered()


@pytest.mark.parametrize(
    "address", ["hf://org/math", "s3://bucket/math", "https://example.org/math.dq.gguf", "gs://b/m"]
)
def test_addresses_are_refused_with_what_to_do(delta_server: Server, address: str) -> None:
    """Without --load-from; tests/server/test_load_by_address.py has it."""
    scheme = address.partition("/")[0]
    for path, body in (
        (LOAD, {"lora_name": "sql", "lora_path": address}),
        ("/deltas/load", {"name": "sql", "uri": address}),
    ):
        message = error(delta_server.post(path, body), 403)
        assert re.fullmatch(f"{scheme}//[.]{{3}}: .*--load-from.*--deltas-dir.*", message)
    message = error(delta_server.post("/deltas/load", {"name": "sql", "file": address}), 400)
    assert re.fullmatch(f'file {scheme}//[.]{{3}}: .*"uri".*--deltas-dir.*', message)
    assert "sql" not in states(delta_server)


def test_paths_of_directories(delta_server: Server, tmp_path: Path) -> None:
    folder = delta_server.log.parent / "dir"
    outside = tmp_path / "outside"
    for path in (outside, folder / "empty", folder / "two", folder / ".hidden"):
        path.mkdir()
    for path in (
        outside / "a.dq.gguf",
        folder / "two/a.dq.gguf",
        folder / "two/b.dq.gguf",
        folder / ".hidden/a.dq.gguf",
    ):
        shutil.copyfile(folder / "json.dq.gguf", path)
    (folder / "link").symlink_to(outside)
    for path, status in (
        (folder, 400),  # the whole of it is no delta
        (folder / "empty", 404),
        (folder / "two", 400),
        (folder / ".hidden", 400),
        (folder / "two" / ".." / "two" / "a.dq.gguf", 400),
        (folder.with_name("dir-2") / "a.dq.gguf", 400),
        (outside / "a.dq.gguf", 400),
        (Path("/etc/passwd"), 400),
        (folder / "link", 404),
        (folder / "gone", 404),
    ):
        answer = delta_server.post("/deltas/load", {"name": "sql", "file": str(path)})
        assert error(answer, status), path
        assert "sql" not in states(delta_server)
    delta_server.ask("/deltas/load", name="sql", file=str(folder / "two" / "a.dq.gguf"))
    assert states(delta_server)["sql"] == "loaded"


# --- names


def test_kubeai_names(artefacts: Artefacts, delta_folder: Path, tmp_path: Path, delta_texts: dict[str, str]) -> None:
    names = ("base_words", "base:words", "words", "base.gguf_words", "base.gguf:words")
    options = ("--deltas-dir", delta_folder, "--blend", "mix=words*0.5+json*0.5", *CONTEXT)
    with serve(artefacts.base, tmp_path, *options, "--delta-names", "prefixed") as server:
        for name in names:
            assert text(server, name) == delta_texts["words"], name
            assert server.ask("/v1/completions", model=name, prompt="a", max_tokens=1)["model"] == "words"
        assert text(server, "base_mix") == text(server, "mix")
        ids = {model["id"] for model in server.get("/v1/models")["data"]}
        assert {"base", "base_words", "base_json", "base_mix"} <= ids
        assert "words" not in ids
        for name in ("base_words", "base:words", "words"):
            assert server.get(f"/v1/models/{name}")["id"] == "base_words"
        for name in ("base_", "base:", "base_gone", "other_words", "base-words", "base__words", "base_base_words"):
            assert error(complete(server, name), 404), name
        assert {row["name"] for row in server.get("/deltas")["data"]} >= {"words", "json"}
    with serve(artefacts.base, tmp_path, *options) as server:
        for name in ("base_words", "base:words"):
            assert error(complete(server, name), 404)
        assert "base_words" not in {model["id"] for model in server.get("/v1/models")["data"]}


def test_a_delta_that_is_called_as_another_would_be(
    artefacts: Artefacts, tmp_path: Path, delta_texts: dict[str, str]
) -> None:
    deltas = f"words={artefacts.words},base_words={artefacts.json}"
    with serve(artefacts.base, tmp_path, "--delta", deltas, *CONTEXT, "--delta-names", "prefixed") as server:
        assert text(server, "base_words") == delta_texts["json"]
        assert text(server, "base:words") == delta_texts["words"]
        assert text(server, "base_base_words") == delta_texts["json"]


def test_prefixed_names_and_limited_keys(artefacts: Artefacts, delta_folder: Path, tmp_path: Path) -> None:
    with serve_keys(artefacts, delta_folder, tmp_path, "--delta-names", "prefixed") as server:

        def status(key: str, model: str) -> int:
            body = {"model": model, "prompt": "a", "n_predict": 1}
            return ask(server, "POST", "/completion", key, json=body).status_code

        assert status("tenant", "base_words") == 200
        assert status("tenant", "base:json") == 403
        assert status("tenant", "base_gone") == 403  # As unknown as one that is another's.
        assert status("guest", "base_words") == 403
        listed = ask(server, "GET", "/v1/models", "tenant").json()["data"]
        assert {model["id"] for model in listed} <= {"base_words", "base_broken"}


def test_names_option_takes_two_values(artefacts: Artefacts) -> None:
    command = [need_program("llama-server"), "-m", artefacts.base, "--delta-names", "other"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "--delta-names 'other': expected plain or prefixed" in done.stderr + done.stdout


# --- metrics


def test_gateway_reads_running_and_waiting_adapters(artefacts: Artefacts, delta_folder: Path, tmp_path: Path) -> None:
    options = ("--deltas-dir", delta_folder, "--metrics", "--delta-max-active", "1", *CONTEXT)
    with serve(artefacts.base, tmp_path, *options) as server:
        text(server, "words")
        idle_row(server, "words")
        idle = metrics(server)
        assert adapters(idle) == (1, set(), set())
        assert gauge(idle, "vllm:num_requests_running") == gauge(idle, "vllm:num_requests_waiting") == 0
        assert gauge(idle, "vllm:kv_cache_usage_perc") == gauge(idle, "vllm:gpu_cache_usage_perc") == 0

        started = threading.Event()
        running = threading.Thread(target=stream, args=(server, "words", 400, started))
        running.start()
        assert started.wait(60)
        waiting = threading.Thread(target=complete, args=(server, "json"))
        waiting.start()
        deadline = time.monotonic() + 60
        while server.get("/deltas")["requests_waiting"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        busy = metrics(server)
        running.join()
        waiting.join()
        assert adapters(busy) == (1, {"words"}, {"json"})
        assert gauge(busy, "vllm:num_requests_running") == 1
        assert gauge(busy, "vllm:num_requests_waiting") == 1
        assert 0 < gauge(busy, "vllm:kv_cache_usage_perc") < 1
        assert gauge(busy, "vllm:gpu_cache_usage_perc") > 0
        assert "llamacpp:requests_processing 1" in busy  # Upstream's own are there, too.


def test_without_a_limit_every_slot_may_run_another_adapter(
    artefacts: Artefacts, delta_folder: Path, tmp_path: Path
) -> None:
    with serve(artefacts.base, tmp_path, "--deltas-dir", delta_folder, "--metrics", *CONTEXT) as server:
        assert adapters(metrics(server))[0] == 4
    with serve(artefacts.base, tmp_path, "--metrics", *CONTEXT) as server:
        assert "vllm:" not in metrics(server)  # A server without deltas is upstream's.


def test_names_in_metrics_are_escaped(artefacts: Artefacts, tmp_path: Path) -> None:
    folder = tmp_path / "dir"
    folder.mkdir()
    for name in ("a b{c}=d", "über", "with,comma"):
        shutil.copyfile(artefacts.words, folder / f"{name}.dq.gguf")
    with serve(artefacts.base, tmp_path, "--deltas-dir", folder, "--metrics", *CONTEXT) as server:
        started = [threading.Event() for _ in range(3)]
        threads = [
            threading.Thread(target=stream, args=(server, name, 300, event))
            for name, event in zip(("a b{c}=d", "über", "with,comma"), started, strict=True)
        ]
        for thread in threads:
            thread.start()
        assert all(event.wait(60) for event in started)
        busy = metrics(server)
        for thread in threads:
            thread.join()
        # A list of vLLM's cannot have a name with a comma, which would read as two.
        assert adapters(busy)[1] == {"a b{c}=d", "über"}
        assert {labels["delta"] for labels, _ in samples(busy, "llamacpp:delta_requests_running")} >= {"with,comma"}


def test_limited_keys_see_no_metrics(artefacts: Artefacts, delta_folder: Path, tmp_path: Path) -> None:
    with serve_keys(artefacts, delta_folder, tmp_path, "--metrics") as server:
        assert ask(server, "GET", "/metrics", "tenant").status_code == 403
        assert "vllm:lora_requests_info" in ask(server, "GET", "/metrics", MASTER).text
