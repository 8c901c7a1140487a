"""Prints CMake's options for building with the CUDA toolkit that pip installed into this Python's environment (docs/gpu.md).

  pip install "cuda-toolkit[nvcc,cudart,cublas,cccl,crt]==13.0.2" nvidia-nvvm==13.0.88
  CMAKE_ARGS=$(python cmake/pypi_cuda.py) pip install . -C cmake.define.DQRELO_CUDA=ON

The packages have no lib64, in which nvcc looks, and no libraries without a version, which linkers ask for: it links both.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

_LIBRARIES = ("cublas", "cublasLt", "cudart")


def find_toolkit(site_packages: Path) -> Path:
    """The toolkit's folder. Raises FileNotFoundError with one line that says what to install."""
    found = sorted(site_packages.glob("nvidia/cu*/bin/nvcc"))
    if not found:
        raise FileNotFoundError(
            f'no nvidia/cu*/bin/nvcc in {site_packages}: pip install "cuda-toolkit[nvcc,cudart,cublas,cccl,crt]==13.0.2" '
            "nvidia-nvvm==13.0.88"
        )
    return found[-1].parents[1]


def link_libraries(toolkit: Path) -> None:
    """Makes the links that are missing. Raises FileNotFoundError for a library that is not installed."""
    if not (toolkit / "lib64").exists():
        (toolkit / "lib64").symlink_to("lib")
    for library in _LIBRARIES:
        link = toolkit / "lib" / f"lib{library}.so"
        versions = sorted(link.parent.glob(f"{link.name}.*"))
        if not versions:
            raise FileNotFoundError(f"no {link}.*: install cuda-toolkit with its extras cudart and cublas")
        if not link.exists():
            link.symlink_to(versions[-1].name)


def options(toolkit: Path) -> list[str]:
    """Without a driver on the machine there is no library for memory mapping to link with: GGML_CUDA_NO_VMM."""
    return [
        f"-DCMAKE_CUDA_COMPILER={toolkit / 'bin' / 'nvcc'}",
        f"-DCUDAToolkit_ROOT={toolkit}",
        "-DGGML_CUDA_NO_VMM=ON",
    ]


def main() -> int:
    """Runs the command; returns its exit code."""
    try:
        toolkit = find_toolkit(Path(sysconfig.get_paths()["purelib"]))
        link_libraries(toolkit)
    except OSError as error:
        print(f"pypi_cuda.py: error: {error}", file=sys.stderr)
        return 1
    print(" ".join(options(toolkit)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
