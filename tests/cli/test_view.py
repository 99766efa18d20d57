"""`medar view` from the command line."""

import os
import signal
import subprocess
import sys
import urllib.request
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Medar = Callable[..., Any]
Write = Callable[..., Path]


def test_ctrl_c_ends_the_server_with_0(write: Write) -> None:
    command = [sys.executable, "-m", "medar", "view", str(write("a.nii.gz")), "--no-browser"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert b"a.nii.gz" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
        assert process.stderr.read() == ""


def test_a_waiting_browser_gets_its_page(
    medar: Medar, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def browse(url: str) -> None:
        with urllib.request.urlopen(url, timeout=3) as answer:
            seen.append(answer.status)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(webbrowser, "open", browse)
    assert medar("view", write("a.nii.gz")).code == 0
    assert seen == [200]


def test_a_folder_is_shown_case_by_case(
    medar: Medar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "phantoms"
    assert medar("data", "phantoms", data, "--n", 2, "--spacing", 14).code == 0
    seen = []

    def browse(url: str) -> None:
        for name in ("", "case-2"):
            with urllib.request.urlopen(url + name, timeout=10) as answer:
                seen.append(answer.read().decode())
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(webbrowser, "open", browse)
    assert medar("view", data).code == 0
    assert '"title": "phantom_0000.nii.gz"' in seen[0]
    assert '"title": "phantom_0001.nii.gz"' in seen[1]
    assert '"name": "heart"' in seen[1]
    assert '"modality": "CT"' in seen[1]


def test_a_single_html_file_is_written(medar: Medar, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    answer = medar(
        "view", data / "images/c0.nii.gz", data / "images/c1.nii.gz", "--label", "none",
        "--label", data / "labels/c1.nii.gz", "--names", "1=liver,2=spleen", "--html", out,
    )  # fmt: skip
    assert (answer.code, answer.out.strip(), answer.err) == (0, str(out), "")
    html = out.read_text()
    assert '"name": "spleen"' in html


def test_a_data_set_names_its_labels(medar: Medar, tmp_path: Path) -> None:
    data, out = tmp_path / "phantoms", tmp_path / "page.html"
    assert medar("data", "phantoms", data, "--n", 1, "--spacing", 14).code == 0
    images, labels = data / "imagesTr", data / "labelsTr"
    answer = medar("view", images, "--label", labels, "--names", data, "--html", out)
    assert (answer.code, '"name": "heart"' in out.read_text()) == (0, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window", "40"], "LEVEL/WIDTH"),
        (["--names", "liver"], "VALUE=NAME"),
        (["--names=--5=liver"], "VALUE=NAME"),
        (["--label", "none", "--label", "none"], "2 for 1 files"),
        (["--label", "absent.nii.gz"], "no such label map"),
        (["--port", "99999", "--no-browser"], "0 to 65535"),
        (["--modality", "PET"], "modality"),
    ],
)
def test_invalid_arguments_are_refused(
    options: list[str], message: str, medar: Medar, write: Write
) -> None:
    assert message in medar("view", write("a.nii.gz"), *options).refusal


def test_invalid_files_are_refused(medar: Medar, write: Write, tmp_path: Path) -> None:
    assert "no such file" in medar("view", tmp_path / "absent.nii").refusal
    image, small = write("a.nii.gz"), write("small.nii.gz", np.zeros((3, 4, 5), np.uint8))
    assert "shape 8x10x6" in medar("view", image, "--label", small).refusal
    (tmp_path / "text.txt").write_text("no volume")
    assert "unknown volume format" in medar("view", tmp_path / "text.txt").refusal
    assert "files" in medar("view").refusal.lower()


@pytest.mark.filterwarnings("always::UserWarning")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("oblique.nrrd", []),
        ("dicom_mr_oblique", []),
        ("nan_voxels.nii", ["--nonfinite", "min"]),
        ("4d_with_slope.nii", ["--channels"]),
        ("no_qform_no_sform.nii.gz", ["--assume-spacing", "header"]),
    ],
)
def test_real_files_are_shown_as_medar_reads_them(
    name: str, options: list[str], medar: Medar, shared_data: Path, tmp_path: Path
) -> None:
    file, out = shared_data / "awkward" / name, tmp_path / "page.html"
    if options:
        assert options[0] in medar("view", file, "--html", out).refusal
    answer = medar("view", file, *options, "--html", out)
    assert (answer.code, out.exists()) == (0, True)
    assert ("the first 8 of 20 channels" in answer.err) == ("--channels" in options)
    assert ("neither sform nor qform" in answer.err) == ("header" in options)
