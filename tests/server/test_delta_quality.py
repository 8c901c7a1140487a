"""GET /deltas shows the quality record of a file that has one, once the file is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.file.rewrite import stamp_quality
from tests.support.delta_server import CONTEXT, complete, row
from tests.support.malformed import ON_PROBLEMS, QUALITY
from tests.support.server_fixtures import Artefacts, serve


def test_quality_of_loaded_deltas(artefacts: Artefacts, tmp_path: Path) -> None:
    folder = tmp_path / "dir"
    folder.mkdir()
    records = {
        "whole": QUALITY | {"text": '"quoted" 12'},
        "text": {name: value for name, value in QUALITY.items() if name not in ON_PROBLEMS},
        "number": QUALITY | {"text": "123"},  # A text stays one.
    }
    for name in (*records, "none"):
        shutil.copy(artefacts.words, folder / f"{name}.dq.gguf")
    for name, record in records.items():
        path = folder / f"{name}.dq.gguf"
        stamp_quality(path, record, DeltaReader(path).content_hash)
    with serve(artefacts.base, tmp_path, "--deltas-dir", folder, *CONTEXT) as server:
        assert row(server, "whole")["quality"] is None
        for name in (*records, "none"):
            assert complete(server, name).status_code == 200
            assert row(server, name)["quality"] == records.get(name)
