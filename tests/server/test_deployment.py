"""The unit and the proxies of docs/deployment.md, as they stand there, where systemd, nginx and Caddy are installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests.support.delta_server import CONTEXT, PROMPT
from tests.support.programs import need_program
from tests.support.server_fixtures import Artefacts, Server, free_port, serve

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deployment.md"
CLOSED = (
    "/deltas",
    "/deltas/load",
    "/deltas/unload",
    "/deltas/reload",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "//deltas//load",
    "/v1/models/../../deltas/load",
    "/lora-adapters",
    "/metrics",
    "/slots",
    "/props",
)
NGINX = """
pid {folder}/nginx.pid; error_log {folder}/error.log; daemon off;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


def need_tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def snippet(beginning: str) -> str:
    """The page's block of code that begins so."""
    found = [
        code for code in re.findall(r"```\w*\n(.*?)```", PAGE.read_text(), re.DOTALL) if code.startswith(beginning)
    ]
    assert len(found) == 1
    code: str = found[0]
    return code


def replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


@contextmanager
def proxy(command: list[str], folder: Path, port: int) -> Iterator[str]:
    """Runs a proxy until the block ends; its address."""
    url = f"http://127.0.0.1:{port}"
    env = os.environ | {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    log = folder / "proxy.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                if requests.get(url + "/health", timeout=5).status_code == 200:
                    break
            except requests.RequestException:
                time.sleep(0.05)
        else:
            pytest.fail(log.read_text())
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def status_of_path(method: str, url: str, path: str, headers: dict[str, str]) -> int:
    """The answer to a path that is sent as it is written."""
    request = requests.Request(method, url, headers=headers).prepare()
    request.url = url + path
    with requests.Session() as session:
        return session.send(request, timeout=60).status_code


def check_proxy(url: str, server: Server) -> None:
    headers = {"Authorization": "Bearer secret"}
    assert requests.get(server.url + "/deltas", headers=headers, timeout=60).status_code == 200
    for path in CLOSED:
        for method in ("GET", "POST"):
            assert status_of_path(method, url, path, headers) == 403, path
    models = requests.get(url + "/v1/models", headers=headers, timeout=60)
    assert [model["id"] for model in models.json()["data"]] == ["base", "words"]
    # The stream has no end, so what comes did not wait for one.
    body = {"model": "words", "prompt": PROMPT, "max_tokens": -1, "ignore_eos": True, "stream": True}
    assert requests.post(url + "/v1/completions", json=body, timeout=60).status_code == 401
    with requests.post(url + "/v1/completions", json=body, headers=headers, stream=True, timeout=60) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        assert all(b'"model":"words"' in line for line in (next(lines) for _ in range(5)) if line)


@pytest.fixture
def server(artefacts: Artefacts, tmp_path: Path) -> Iterator[Server]:
    options = ("--delta", artefacts.words, "--api-key", "secret", "--metrics", "--context-shift")
    with serve(artefacts.base, tmp_path, *options, *CONTEXT) as running:
        yield running


def test_nginx(server: Server, tmp_path: Path) -> None:
    nginx, port = need_tool("nginx"), free_port()
    site = replaced(snippet("upstream"), "127.0.0.1:8080", urlsplit(server.url).netloc)
    (tmp_path / "site.conf").write_text(replaced(site, "443 ssl", f"127.0.0.1:{port}"))
    (tmp_path / "nginx.conf").write_text(NGINX.format(folder=tmp_path))
    with proxy([nginx, "-c", str(tmp_path / "nginx.conf")], tmp_path, port) as url:
        check_proxy(url, server)


def test_caddy(server: Server, tmp_path: Path) -> None:
    caddy, port = need_tool("caddy"), free_port()
    site = replaced(snippet("llama.example.org"), "127.0.0.1:8080", urlsplit(server.url).netloc)
    config = tmp_path / "Caddyfile"
    config.write_text("{\n    admin off\n}\n" + replaced(site, "llama.example.org", f"http://127.0.0.1:{port}"))
    with proxy([caddy, "run", "--config", str(config), "--adapter", "caddyfile"], tmp_path, port) as url:
        check_proxy(url, server)


def test_unit(artefacts: Artefacts, tmp_path: Path) -> None:
    """systemd finds nothing to say about it, and the server takes its options."""
    unit = snippet("[Unit]")
    program = need_program("llama-server")
    command = replaced(unit, "/opt/dqrelo/bin/dqrelo-server", str(program))
    found = re.search(r"dqrelo-server -m \S+ (.*?)\n[#A-Z]", unit.replace("\\\n", ""), re.DOTALL)
    assert found
    (tmp_path / "api-keys").write_text("one\ntwo\n")
    options = replaced(found[1], "/srv/llama/deltas", str(artefacts.words.parent))
    options = replaced(options, "${CREDENTIALS_DIRECTORY}", str(tmp_path))
    options = replaced(options, "--host 127.0.0.1 --port 8080", "")
    with serve(artefacts.base, tmp_path, *options.split()) as server:
        assert requests.get(server.url + "/deltas", timeout=60).status_code == 401
        answer = requests.get(server.url + "/deltas", headers={"X-Api-Key": "two"}, timeout=60)
        assert len(answer.json()["data"]) > 0

    analyze = need_tool("systemd-analyze")
    path = tmp_path / "dqrelo.service"
    path.write_text(command)
    done = subprocess.run([analyze, "verify", path], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
