"""Includes among the C++ folders go down only."""

from __future__ import annotations

from pathlib import Path

import pytest

import check_includes

ROOT = Path(__file__).resolve().parents[2]


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"ggml_ops/op.h": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_checkout_has_no_upward_include() -> None:
    assert check_includes.upward(ROOT) == []


def test_every_folder_is_a_layer() -> None:
    folders = {f"cpp/{path.name}" for path in (ROOT / "cpp").iterdir() if path.is_dir()} | {"ggml_ops"}
    assert folders == {folder for layer in check_includes.LAYERS for folder in layer}


@pytest.mark.parametrize(
    ("source", "header", "text"),
    [
        ("cpp/file/a.cpp", "cpp/graph/b.h", '#include "graph/b.h"'),
        ("cpp/context/a.h", "cpp/graph/b.h", '  #  include "graph/b.h"'),
        ("cpp/common/a.cpp", "cpp/server/b.h", '#include "b.h"'),  # That folder is on the path of includes.
        ("cpp/bindings/a.cpp", "cpp/server/b.h", '#include "b.h"'),
        ("ggml_ops/cpu/a.cpp", "cpp/include/b.h", '#include "b.h"'),
    ],
)
def test_a_planted_upward_include_is_one_line(tmp_path: Path, source: str, header: str, text: str) -> None:
    tree(tmp_path, {source: f'#include "c.h"\n{text}\n', header: ""})
    (line,) = check_includes.upward(tmp_path)
    assert line.startswith(f"{source}:2: ")
    assert "/".join(header.split("/")[:-1]) in line


def test_includes_downward_beside_and_of_others_pass(tmp_path: Path) -> None:
    files = {
        "cpp/graph/a.cpp": '#include "file/b.h"\n#include "c.h"\n#include "op.h"\n#include "llama.h"\n#include <graph/a.h>\n',
        "cpp/graph/c.h": "",
        "cpp/server/c.h": "",  # The file beside the source is meant.
        "cpp/file/b.h": "",
    }
    assert check_includes.upward(tree(tmp_path, files)) == []


def test_a_folder_without_a_layer_is_named(tmp_path: Path) -> None:
    (line,) = check_includes.upward(tree(tmp_path, {"cpp/misc/a.h": ""}))
    assert line.startswith("cpp/misc/a.h: ")


def test_exit_status_is_1_with_an_upward_include(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["check_includes.py", str(tmp_path)])
    tree(tmp_path, {"cpp/file/a.h": "", "cpp/graph/b.h": '#include "file/a.h"'})
    assert (check_includes.main(), capsys.readouterr().out) == (0, "")
    (tmp_path / "cpp/file/a.h").write_text('#include "graph/b.h"')
    assert check_includes.main() == 1
    assert capsys.readouterr().out.count("\n") == 1
