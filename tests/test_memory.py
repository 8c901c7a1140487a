"""memory.available_bytes: the machine's word and the container's, whichever is smaller."""

from __future__ import annotations

from pathlib import Path

from dqrelo_gguf.memory import available_bytes


def files(folder: Path, limit: str, used: int = 1000, inactive: int = 0) -> tuple[Path, Path]:
    meminfo, cgroup = folder / "meminfo", folder / "cgroup"
    cgroup.mkdir()
    meminfo.write_text("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: 50 kB\n")
    (cgroup / "memory.max").write_text(limit)
    (cgroup / "memory.current").write_text(str(used))
    (cgroup / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")
    return meminfo, cgroup


def test_file_pages_of_the_machine_count_as_free(tmp_path: Path) -> None:
    assert available_bytes(*files(tmp_path, "max")) == 50 * 1024


def test_a_containers_bound_counts(tmp_path: Path) -> None:
    assert available_bytes(*files(tmp_path, "30000", used=20000, inactive=500)) == 10500


def test_a_container_over_its_bound_has_nothing(tmp_path: Path) -> None:
    assert available_bytes(*files(tmp_path, "30000", used=40000)) == 0


def test_without_a_container_the_machine_decides(tmp_path: Path) -> None:
    meminfo, _ = files(tmp_path, "max")
    assert available_bytes(meminfo, tmp_path / "none") == 50 * 1024


def test_this_machine_has_memory() -> None:
    found = available_bytes()
    assert found is None or found > 0
