"""The Dockerfile: what it needs exists, what it runs is valid, build arguments have an effect."""

import os
import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "how-to" / "docker.md"
KNOWN = {"FROM", "ARG", "RUN", "USER", "WORKDIR", "COPY", "ENV", "VOLUME", "CMD"}


def steps() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and their arguments."""
    lines = [one for one in (ROOT / "Dockerfile").read_text().splitlines() if one[:1] != "#"]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (name, words.strip())
        for name, _, words in (one.partition(" ") for one in joined.splitlines() if one.strip())
    ]


def arguments(name: str) -> list[str]:
    return [words for one, words in steps() if one == name]


def test_instructions_are_known_and_the_user_has_no_rights() -> None:
    assert {name for name, _ in steps()} <= KNOWN
    names = [name for name, _ in steps()]
    assert names[0] == "FROM"
    assert arguments("USER") == ["medar"]
    assert names.index("USER") < names.index("COPY") < names.index("CMD")


def test_the_base_image_is_pinned_and_that_of_the_tracking_server() -> None:
    compose = yaml.safe_load((ROOT / "mlflow" / "compose.yaml").read_text())
    other = compose["services"]["mlflow"]["build"]["dockerfile_inline"].splitlines()[0]
    assert [f"FROM {image}" for image in arguments("FROM")] == [other]
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", arguments("FROM")[0])


def test_copied_files_exist_and_are_not_ignored() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().split() if line]
    copied = {
        word for words in arguments("COPY") for word in words.split()[:-1] if word[:2] != "--"
    }
    assert copied == {"."}
    assert {".git", ".venv", "runs"} <= set(ignored)
    needed = ["pyproject.toml", "constraints.txt", "Makefile", "README.md", "medar", "configs"]
    for name in needed:
        assert (ROOT / name).exists(), name
        assert not any(fnmatch(name, pattern) for pattern in ignored), name


def install_words(folder: Path, index: str) -> list[str]:
    """Run the step that installs, with a `python` that makes a `pip` that prints its arguments."""
    (folder / "bin").mkdir()
    pip = '#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done\n'
    python = f"#!/bin/sh\nmkdir -p .venv/bin\nprintf '%s' '{pip}' > .venv/bin/pip\n"
    python += "chmod +x .venv/bin/pip\n"
    (folder / "bin" / "python").write_text(python)
    (folder / "bin" / "python").chmod(0o755)
    (command,) = [one for one in arguments("RUN") if "pip install" in one]
    found = {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, capture_output=True, text=True, check=True,
        env={**found, "TORCH_INDEX": index, "EXTRAS": "dicom"},
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.parametrize("index", ["", "https://wheels.example.org/cpu"])
def test_the_index_decides_which_torch_is_installed(index: str, tmp_path: Path) -> None:
    first = ["<install>", "<--no-cache-dir>"]
    chosen = ["<--extra-index-url>", f"<{index}>"] if index else []
    last = ["<-c>", "<constraints.txt>", "<-e>", "<.[dicom]>"]
    assert install_words(tmp_path, index) == [*first, *chosen, *last]


@pytest.mark.parametrize("command", arguments("RUN"))
def test_commands_are_valid_shell(command: str) -> None:
    assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0


def test_the_demo_finds_its_environment_ready() -> None:
    """`make` installs nothing in the image: the stamp is newer than the files it depends on."""
    assert "READY := .venv/.ready" in (ROOT / "Makefile").read_text()
    names = [name for name, _ in steps()]
    assert arguments("RUN")[-1].endswith("touch .venv/.ready")
    assert max(k for k, name in enumerate(names) if name == "COPY") < names.index("ENV")
    assert "medar make demo" in PAGE.read_text()
