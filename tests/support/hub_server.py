"""A stand-in for the Hugging Face Hub: repositories with commits, whose large files lie on another path, behind a signature."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.web_server import Handler, Served, WebServer

SIGNATURE = "X-Signature=very-secret"
TOKEN = "hf_verysecrettoken"  # noqa: S105 - of this server alone


def commit_of(files: dict[str, bytes]) -> str:
    """A commit of these files: equal for equal ones."""
    made = hashlib.sha1(usedforsecurity=False)
    for name, data in sorted(files.items()):
        made.update(f"{name}\0{len(data)}\0".encode() + data)
    return made.hexdigest()


def git_sha1(data: bytes) -> str:
    """Git's name of a blob."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


@dataclass
class Repository:
    """Branches and tags with their commits, and the files of each commit."""

    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    is_private: bool = False
    is_gated: bool = False

    def put(self, files: dict[str, bytes], ref: str = "main") -> str:
        """A new commit of a branch; returns it."""
        commit = commit_of(files)
        self.commits[commit] = dict(files)
        self.refs[ref] = commit
        return commit


class HubServer(WebServer):
    """The Hub.

    Args:
        lfs: endings of files that are large ones.
    """

    def __init__(self, lfs: tuple[str, ...] = (".gguf", ".safetensors", ".bin")) -> None:
        super().__init__()
        self.repositories: dict[str, Repository] = {}
        self._lfs = lfs
        self.uploads: dict[str, bytes] = {}

    def is_lfs(self, name: str) -> bool:
        """True for a file that is stored by its SHA-256."""
        return name.endswith(self._lfs)

    def put(self, repo: str, files: dict[str, bytes], ref: str = "main") -> str:
        """A new commit of a repository."""
        return self.repositories.setdefault(repo, Repository()).put(files, ref)

    def answer(self, handler: Handler) -> None:
        path = unquote(urlsplit(handler.path).path)
        parts = path.strip("/").split("/")
        if handler.command in ("POST", "PUT"):
            self._write(handler, parts)
        elif parts[0] == "cdn":
            self._cdn(handler, parts[1])
        elif parts == ["api", "whoami-v2"]:
            has_token = handler.headers.get("Authorization") == f"Bearer {TOKEN}"
            handler.plain(200 if has_token else 401, b'{"name": "o"}')
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["revision"]:
            self._info(handler, "/".join(parts[2:4]), "/".join(parts[5:]))
        elif parts[2:3] == ["resolve"]:
            self._resolve(handler, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            handler.plain(404, b"{}")

    def _write(self, handler: Handler, parts: list[str]) -> None:
        """An upload: a repository is made, files are announced, large ones sent by LFS, and then all are committed."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
        if parts[0] == "upload":  # It is signed, and needs no token.
            self.uploads[hashlib.sha256(body).hexdigest()] = body
            handler.plain(200, b"")
        elif handler.headers.get("Authorization") != f"Bearer {TOKEN}":
            handler.plain(403, b"{}")
        elif parts[:3] == ["api", "repos", "create"]:
            made = json.loads(body)
            repo = f"{made['organization']}/{made['name']}"
            status = 409 if repo in self.repositories else 200
            if status == 200:
                self.put(repo, {".gitattributes": b""})
                self.repositories[repo].is_private = made.get("visibility") == "private" or bool(made.get("private"))
            handler.plain(status, json.dumps({"url": f"{self.url}/{repo}"}).encode())
        elif parts == ["api", "validate-yaml"]:
            handler.plain(200, b'{"errors": [], "warnings": []}')
        elif parts[4:5] == ["preupload"]:
            files = [
                {"path": f["path"], "uploadMode": "lfs" if self.is_lfs(f["path"]) else "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            handler.plain(200, json.dumps({"files": files}).encode())
        elif parts[-2:] == ["objects", "batch"]:
            upload = {"href": f"{self.url}/upload?{SIGNATURE}"}
            objects = [{**o, "actions": {"upload": upload}} for o in json.loads(body)["objects"]]
            handler.plain(200, json.dumps({"transfer": "basic", "objects": objects}).encode())
        else:
            self._commit(handler, "/".join(parts[2:4]), body)

    def _commit(self, handler: Handler, repo: str, body: bytes) -> None:
        files = dict(self.repositories[repo].commits[self.repositories[repo].refs["main"]])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.uploads[value["oid"]]
        commit = self.put(repo, files)
        answer = {"commitUrl": f"{self.url}/{repo}/commit/{commit}", "commitOid": commit}
        handler.plain(200, json.dumps(answer).encode())

    def _open(self, handler: Handler, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.repositories.get(repo)
        has_token = handler.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.is_private and not has_token):
            handler.plain(401, b"{}", X_Error_Code="RepoNotFound")
            return None
        if repository.is_gated and not has_token:
            handler.plain(403, b"{}", X_Error_Code="GatedRepo")
            return None
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            handler.plain(404, b"{}", X_Error_Code="RevisionNotFound")
            return None
        return commit, repository.commits[commit]

    def _info(self, handler: Handler, repo: str, revision: str) -> None:
        found = self._open(handler, repo, revision)
        if found is None:
            return
        commit, files = found
        siblings = [self.sibling(name, data) for name, data in files.items()]
        answer = {"id": repo, "sha": commit, "private": False, "siblings": siblings}
        handler.plain(200, json.dumps(answer).encode(), Content_Type="application/json")

    def sibling(self, name: str, data: bytes) -> dict[str, Any]:
        """A file as the Hub lists it."""
        entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
        if self.is_lfs(name):
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 135}
        return entry

    def _resolve(self, handler: Handler, repo: str, revision: str, name: str) -> None:
        found = self._open(handler, repo, revision)
        if found is None:
            return
        commit, files = found
        if name not in files:
            handler.plain(404, b"{}", X_Error_Code="EntryNotFound")
            return
        if not self.is_lfs(name):
            handler.send_file(Served(files[name], f'"{git_sha1(files[name])}"', headers={"X-Repo-Commit": commit}))
            return
        sha256 = hashlib.sha256(files[name]).hexdigest()
        headers = {"X_Repo_Commit": commit, "X_Linked_Etag": f'"{sha256}"', "X_Linked_Size": str(len(files[name]))}
        other_host = self.url.replace("127.0.0.1", "localhost")  # as on the Hub
        handler.plain(302, b"", Location=f"{other_host}/cdn/{sha256}?{SIGNATURE}", **headers)

    def _cdn(self, handler: Handler, sha256: str) -> None:
        for repository in self.repositories.values():
            for files in repository.commits.values():
                for data in files.values():
                    if hashlib.sha256(data).hexdigest() == sha256:
                        handler.send_file(Served.of(data))
                        return
        handler.plain(404, b"")
