"""The manifest of examples/kubernetes: valid for Kubernetes, closed as far as a server can be, and with options that the server has."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import requests
import yaml

from tests.support.keys import ask
from tests.support.server_fixtures import Artefacts, serve

MANIFEST = Path(__file__).resolve().parents[2] / "examples" / "kubernetes" / "server.yaml"
# The oldest and a recent version whose schemas kubernetes-validate has.
VERSIONS = ("1.25", "1.34")


def objects() -> dict[str, dict[str, Any]]:
    return {part["kind"]: part for part in yaml.safe_load_all(MANIFEST.read_text())}


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = objects()["Deployment"]["spec"]["template"]["spec"]
    return spec


def value_of(args: list[str], option: str) -> str:
    return args[args.index(option) + 1]


@pytest.mark.parametrize("version", VERSIONS)
def test_manifest_is_valid(version: str) -> None:
    for part in objects().values():
        kubernetes_validate.validate(part, version, strict=True)
    broken = objects()["Deployment"]
    broken["spec"]["template"]["spec"]["containers"][0]["readOnlyRoot"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


def test_parts_of_the_manifest_meet() -> None:
    parts = objects()
    assert parts.keys() == {"PersistentVolumeClaim", "Deployment", "Service"}
    labels = parts["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert parts["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert parts["Service"]["spec"]["selector"].items() <= labels.items()
    (server,) = pod()["containers"]
    args = server["args"]
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert str(ports[parts["Service"]["spec"]["ports"][0]["targetPort"]]) == value_of(args, "--port")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["path"] == "/health"
        assert server[probe]["httpGet"]["port"] in ports
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    assert {mount["name"] for mount in server["volumeMounts"]} == volumes.keys()
    assert volumes["models"]["persistentVolumeClaim"]["claimName"] == parts["PersistentVolumeClaim"]["metadata"]["name"]
    mounts = {mount["name"]: mount for mount in server["volumeMounts"]}
    for option, volume in (("-m", "models"), ("--deltas-dir", "models"), ("--api-key-file", "api-keys")):
        assert Path(value_of(args, option)).is_relative_to(mounts[volume]["mountPath"])
    assert pod()["terminationGracePeriodSeconds"] >= int(value_of(args, "--shutdown-timeout")) + 15


def test_the_server_may_do_little() -> None:
    (server,) = pod()["containers"]
    assert pod()["automountServiceAccountToken"] is False
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["runAsUser"] > 0
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["name"] for mount in server["volumeMounts"] if not mount.get("readOnly")} == {"tmp"}
    assert server["resources"]["limits"]["memory"] == server["resources"]["requests"]["memory"]
    assert "kind: Secret" not in MANIFEST.read_text()  # A manifest is not the place of keys.


def test_the_server_takes_the_arguments(artefacts: Artefacts, delta_folder: Path, tmp_path: Path) -> None:
    shutil.copyfile(artefacts.base, tmp_path / "base.gguf")
    (tmp_path / "deltas").symlink_to(delta_folder)
    (tmp_path / "api-keys").write_text("key-one\nkey-two\n")
    command, *args = pod()["containers"][0]["args"]
    assert command == "serve"
    at = args.index("-m")
    del args[at : at + 2]
    for option in ("--host", "--port"):
        at = args.index(option)
        del args[at : at + 2]
    args = [arg.replace("/models", str(tmp_path)).replace("/run/secrets/dqrelo", str(tmp_path)) for arg in args]
    with serve(tmp_path / "base.gguf", tmp_path, *args) as server:
        assert requests.get(server.url + "/health", timeout=60).status_code == 200
        assert requests.get(server.url + "/v1/models", timeout=60).status_code in {200, 401}
        assert requests.get(server.url + "/deltas", timeout=60).status_code == 401
        names = {row["name"] for row in ask(server, "GET", "/deltas", "key-two").json()["data"]}
        assert "words" in names
        body = {"model": "words", "prompt": "a", "max_tokens": 1}
        assert ask(server, "POST", "/v1/completions", "key-one", json=body).status_code == 200
        assert "vllm:lora_requests_info" in ask(server, "GET", "/metrics", "key-one").text
