"""Uploads to a stand-in for the Hub, and the card that goes with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dqrelo_gguf.cli import convert, push
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.file.rewrite import stamp_quality
from dqrelo_gguf.publish.push import Target
from tests.support.hub_server import TOKEN, HubServer
from tests.support.models import pico_gguf, pico_tuned_gguf
from tests.support.web_server import Rule, status


def files_of(hub: HubServer, repo: str) -> dict[str, bytes]:
    """The files of a repository's main branch."""
    found = hub.repositories[repo]
    return found.commits[found.refs["main"]]


def front_of(card: bytes) -> dict[str, object]:
    """What the Hub reads of a card."""
    begin, text, _ = card.decode().split("---\n", 2)
    assert begin == ""
    return dict(yaml.safe_load(text))


def test_a_delta_and_its_card(hub: HubServer, small_delta: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert push.main([str(small_delta), "o/delta", "--base-model", "o/base"]) == 0
    files = files_of(hub, "o/delta")
    assert files["tuned.dq.gguf"] == small_delta.read_bytes()
    front = front_of(files["README.md"])
    assert (front["base_model"], front["base_model_relation"]) == ("o/base", "adapter")
    assert front["library_name"] == "dqrelo-gguf"
    assert "--delta hf://o/delta/tuned.dq.gguf" in files["README.md"].decode()
    captured = capfd.readouterr()
    assert captured.out.strip() == f"hf://o/delta/tuned.dq.gguf@{hub.repositories['o/delta'].refs['main']}"
    assert TOKEN not in captured.out + captured.err
    assert "secret" not in captured.out + captured.err


def test_a_card_that_is_there_stays(hub: HubServer, small_delta: Path) -> None:
    hub.put("o/delta", {"README.md": b"mine"})
    assert push.main([str(small_delta), "o/delta"]) == 0
    assert files_of(hub, "o/delta")["README.md"] == b"mine"
    assert "tuned.dq.gguf" in files_of(hub, "o/delta")


def test_a_private_repository(hub: HubServer, small_delta: Path) -> None:
    assert push.main([str(small_delta), "o/delta", "--private"]) == 0
    assert hub.repositories["o/delta"].is_private


def test_the_quality_record_is_a_model_index(hub: HubServer, small_delta: Path, tmp_path: Path) -> None:
    path = tmp_path / "stamped.dq.gguf"
    path.write_bytes(small_delta.read_bytes())
    quality = {
        "evaluator": "dqrelo-eval 1", "tuned_sha256": "0" * 64, "base_digest": "0" * 64, "text": "wiki.txt", "text_sha256": "0" * 64,
        "n_ctx": 512, "n_tokens": 100, "kl": 0.25, "kl_error": 0.01, "kl_base": 1.5, "top_p": 0.75,
    }  # fmt: skip
    stamp_quality(path, quality, DeltaReader(path).content_hash)
    assert push.main([str(path), "o/delta"]) == 0
    (model,) = front_of(files_of(hub, "o/delta")["README.md"])["model-index"]  # type: ignore[misc]
    (result,) = model["results"]
    assert result["dataset"] == {"name": "wiki.txt", "type": "text"}
    assert {m["type"]: m["value"] for m in result["metrics"]} == {"kl": 0.25, "kl_base": 1.5, "top_p": 0.75}


def test_a_dry_run_prints_the_card_and_asks_nobody(
    hub: HubServer, small_delta: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert push.main([str(small_delta), "o/delta", "--dry-run"]) == 0
    assert "library_name: dqrelo-gguf" in capfd.readouterr().out
    assert hub.requests == []


def test_a_conversion_that_is_pushed(hub: HubServer, tmp_path: Path) -> None:
    out = tmp_path / "x.dq.gguf"
    assert (
        convert.main([str(pico_gguf("llama")), str(pico_tuned_gguf("llama")), "-o", str(out), "--push", "o/delta"]) == 0
    )
    assert files_of(hub, "o/delta")["x.dq.gguf"] == out.read_bytes()


@pytest.mark.parametrize("token", [None, "hf_anotherone"])
def test_a_token_is_looked_at_before_the_work(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    token: str | None,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    out = tmp_path / "x.dq.gguf"
    assert (
        convert.main([str(pico_gguf("llama")), str(pico_tuned_gguf("llama")), "-o", str(out), "--push", "o/delta"]) == 1
    )
    assert "hf auth login" in (error := capfd.readouterr().err)
    assert token is None or token not in error
    assert not out.exists()
    assert "o/delta" not in hub.repositories


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (("/api/repos/create", 403), "may not be written with the token"),
        (("/preupload/", 400), "the Hub answers 400"),
        (("/objects/batch", 403), "may not be written with the token"),
        (("/upload", 400), "the Hub answers 400"),
        (("/commit/", 400), "the Hub answers 400"),
    ],
)
def test_an_upload_that_fails_is_one_line(
    hub: HubServer, small_delta: Path, capfd: pytest.CaptureFixture[str], rule: tuple[str, int], problem: str
) -> None:
    path, code = rule
    hub.rules.append(Rule(path, status(code)))
    assert push.main([str(small_delta), "o/delta"]) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert "dqrelo-push: error: hf://o/delta: " in error  # behind a bar that the transfer left
    assert problem in error
    assert "secret" not in error


@pytest.mark.parametrize("repo", ["delta", "o/delta/x", "o/../x", "hf://o/delta", "o/delta@main", "o/delta?x", ""])
def test_what_is_no_repository(repo: str) -> None:
    with pytest.raises(InputError):
        Target(repo)


def test_what_is_no_delta_is_not_uploaded(hub: HubServer, small_base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert push.main([str(small_base), "o/delta"]) == 1
    assert "error: " in capfd.readouterr().err
    assert hub.requests == []
