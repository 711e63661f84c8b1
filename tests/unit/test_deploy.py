"""What an image is built from holds all that building takes, and no more."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path


def test_the_image_gets_what_building_takes(repository: Path) -> None:
    lines = (repository / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    admitted = {line.removeprefix("!") for line in lines if line.startswith("!")}
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dockerfile = (repository / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    cmake = (repository / "CMakeLists.txt").read_text(encoding="utf-8")
    needed = {"pyproject.toml", "CMakeLists.txt", "src", project["readme"], *project["license-files"]}
    needed |= set(re.findall(r"--constraint (\S+)", dockerfile))
    needed |= {path.split("/")[0] for path in re.findall(r"\bcsrc/\S+", cmake)}
    assert needed == admitted
    assert all((repository / name).exists() for name in admitted)
