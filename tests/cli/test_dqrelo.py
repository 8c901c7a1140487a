"""dqrelo: every command under one name."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import shtab

from dqrelo_gguf.cli import dqrelo
from dqrelo_gguf.version import __version__

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def test_every_program_of_the_package_is_a_command() -> None:
    programs = {target.partition(":")[0] for name, target in SCRIPTS.items() if name != "dqrelo"}
    assert programs == {f"dqrelo_gguf.cli.{module}" for module, _ in dqrelo.COMMANDS.values()}
    assert SCRIPTS["dqrelo"] == "dqrelo_gguf.cli.dqrelo:main"


@pytest.mark.parametrize("name", dqrelo.COMMANDS)
def test_a_command_gets_its_arguments_as_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"dqrelo_gguf.cli.{dqrelo.COMMANDS[name][0]}")
    seen: list[list[str]] = []
    monkeypatch.setattr(module, "main", lambda argv: seen.append(argv) or 7)
    assert dqrelo.main([name, "--version", "-h", "a b"]) == 7
    assert seen == [["--version", "-h", "a b"]]


@pytest.mark.parametrize("module", [module for module, _ in dqrelo.COMMANDS.values()])
def test_a_command_runs_as_a_module(module: str) -> None:
    source = (Path(dqrelo.__file__).parent / f"{module}.py").read_text()
    assert source.endswith('if __name__ == "__main__":\n    sys.exit(main())\n'), "the demo starts commands so"


@pytest.mark.parametrize("args", [[], ["nonsense"], ["--nonsense"], ["--completion", "sh"]])
def test_what_is_no_command_is_refused_with_what_there_is(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        dqrelo.main(args)
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("dqrelo: error: ")
    if "--" not in "".join(args):
        assert all(name in error for name in dqrelo.COMMANDS)


def test_version_names_package_pin_and_instruction_set(capsys: pytest.CaptureFixture[str]) -> None:
    commit = next(
        line for line in (ROOT / "patches" / "UPSTREAM").read_text().splitlines() if line.startswith("commit = ")
    )
    assert dqrelo.main(["--version"]) == 0
    package, llama_cpp, instructions = capsys.readouterr().out.splitlines()
    assert package == f"dqrelo-gguf {__version__}"
    assert llama_cpp == f"llama.cpp {commit.removeprefix('commit = ')}-dqrelo"
    assert instructions.removeprefix("instruction set ").partition(";")[0] in {
        "scalar",
        "avx2",
        "avxvnni",
        "avx512vnni",
        "neon",
    }


def test_help_is_quick_and_names_all_commands() -> None:
    code = "import sys; from dqrelo_gguf.cli import dqrelo\ntry: dqrelo.main(['--help'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in dqrelo.COMMANDS)
    assert done.stdout.endswith("False\n"), "help imports no PyTorch"


def test_completion_knows_commands_and_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(dqrelo.SHELLS) <= set(shtab.SUPPORTED_SHELLS)
    for shell in dqrelo.SHELLS:
        assert dqrelo.main(["--completion", shell]) == 0
        script = capsys.readouterr().out
        assert all(word in script for word in (*dqrelo.COMMANDS, "calibrate", "as-delta", "repetitions", "max-size"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_with_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert dqrelo.main(["--completion", "bash"]) == 0
    script = capsys.readouterr().out
    ask = '\nCOMP_WORDS=(dqrelo mer); COMP_CWORD=1; COMP_LINE="dqrelo mer"; $(complete -p dqrelo | sed "s/.*-F \\([^ ]*\\).*/\\1/") dqrelo mer'
    done = subprocess.run(
        ["bash"], input=f'{script}{ask}; echo "${{COMPREPLY[@]}}"', capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "merge", done.stderr
