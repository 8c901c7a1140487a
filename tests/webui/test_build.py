"""The page as a file: put together from its sources, small, and closed by its policy."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

from dqrelo_gguf.evaluate import page as evaluate_page
from dqrelo_gguf.webui import SITE
from dqrelo_gguf.webui.build import SOURCE, STYLES, bundle, page

MAX_BYTES = 200_000
MAX_LINES = 500


def test_the_page_is_what_its_sources_make() -> None:
    """If not: python -m dqrelo_gguf.webui.build."""
    assert (SITE / "index.html").read_text(encoding="utf-8") == page()


def test_it_is_one_small_file_of_small_sources() -> None:
    assert [path.name for path in SITE.iterdir()] == ["index.html"]  # The server hands out whatever lies there.
    assert (SITE / "index.html").stat().st_size < MAX_BYTES
    for path in SOURCE.iterdir():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES, path.name


def test_every_source_is_in_the_page() -> None:
    text = page()
    for path in (*SOURCE.glob("*.js"), *SOURCE.glob("*.css")):
        assert path.read_text(encoding="utf-8").splitlines()[0] in text, path.name
    assert {path.name for path in SOURCE.glob("*.css")} == set(STYLES)


def test_the_policy_names_this_script_and_this_style() -> None:
    text = page()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (content,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_no_source_makes_markup_of_text() -> None:
    for path in SOURCE.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc", text
        ), path.name


def test_its_colours_are_those_of_the_page_of_dqrelo_eval() -> None:
    """The two look like one product."""
    assets = Path(evaluate_page.__file__).parent / "assets"
    theirs = [
        dict(re.findall(r"--([\w-]+): (#\w+)", block))
        for block in assets.joinpath("page.css").read_text().split("@media")[:2]
    ]
    ours = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", (SOURCE / "palette.css").read_text())
    shared = {name: (light, dark) for name, light, dark in ours if name in theirs[0]}
    assert set(shared) == {"paper", "ink", "faint", "line", "panel", "accent"}
    assert shared == {name: (theirs[0][name], theirs[1][name]) for name in shared}
    models = re.findall(r"(?:light|dark): \[(.*?)\]", (assets / "theme.js").read_text())
    columns = [(light, dark) for name, light, dark in ours if re.fullmatch(r"c\d", name)]
    assert [list(side) for side in zip(*columns, strict=True)] == [re.findall(r"#\w+", side) for side in models[:2]]


def write(folder: Path, **sources: str) -> Path:
    for name, text in sources.items():
        (folder / f"{name}.js").write_text(text)
    return folder


def test_modules_come_behind_those_that_they_import(tmp_path: Path) -> None:
    leaf = "export const one = 1;\n"
    left = 'import { one } from "./leaf.js";\nexport const two = one + one;\n'
    app = 'import { two } from "./left.js";\nimport { one } from "./leaf.js";\nconsole.log(one, two);\n'
    assert bundle(write(tmp_path, leaf=leaf, left=left, app=app)) == (
        "const one = 1;\n\nconst two = one + one;\n\nconsole.log(one, two);\n"
    )


@pytest.mark.parametrize(
    ("leaf", "fault"),
    [
        ("export const one = 1;\nconst app = 2;\n", "app.js and leaf.js both define app"),
        ("export { one };\n", "leaf.js: an import or export that is not understood: export { one };"),
        ('import * as all from "./other.js";\n', "leaf.js: an import or export that is not understood"),
        ('import { app } from "./app.js";\n', "app.js, leaf.js and app.js import each other"),
    ],
)
def test_what_cannot_be_put_together_is_refused(tmp_path: Path, leaf: str, fault: str) -> None:
    app = 'import { one } from "./leaf.js";\nconst app = one;\n'
    with pytest.raises(ValueError, match=re.escape(fault)):
        bundle(write(tmp_path, leaf=leaf, app=app))
