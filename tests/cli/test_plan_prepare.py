"""`medar data plan` and `medar data prepare` from the command line."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar.data.plan import Plan
from medar.errors import MedarError
from medar.files import exclusive
from medar.volume import Volume, write_nifti

Medar = Callable[..., Any]
Write = Callable[..., Path]


def prepared(out: Path) -> dict[str, dict[str, Any]]:
    """The records of cases.jsonl by case id."""
    lines = [json.loads(line) for line in (out / "cases.jsonl").read_text().splitlines()[1:]]
    return {line["id"]: line for line in lines}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--spacing 0 0 0", "spacing"),
        ("--spacing nan 1 1", "spacing"),
        ("--spacing inf 1 1", "spacing"),
        ("--spacing 1 1", "--spacing"),
        ("--size 0 8 8", "size"),
        ("--size 7 7 7 --downsampling 8 8 8", "size must be a multiple of downsampling"),
        ("--downsampling 0 1 1", "downsampling"),
        ("--window 5 1", "high must be greater than low 5, got 1"),
        ("--window nan 1", "low must be finite, got nan"),
        ("--percentiles -1 50", "percentiles must lie within 0 to 100, got -1 to 50"),
        ("--window 0 1 --percentiles 1 99", "exclude each other"),
        ("--nonfinite keep", "finite"),
        ("--voxels 0", "voxels must be at least 1, got 0"),
        ("--voxels -5", "voxels must be at least 1, got -5"),
        ("--mode cube", "cube"),
        ("--workers 0", "--workers must be at least 1, got 0"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "prepare"])
def test_invalid_values_are_refused_before_measuring(
    medar: Medar, data: Path, tmp_path: Path, command: str, arguments: str, message: str
) -> None:
    out = tmp_path / "out"
    assert message in medar("data", command, data, "--out", out, *arguments.split()).refusal
    assert not out.exists()


def test_an_invalid_folder_gives_one_line(medar: Medar, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for command in ("plan", "prepare"):
        assert "is a file" in medar("data", command, data, "--out", file).refusal
        below = file / "out"
        assert f"{below}" in medar("data", command, data, "--out", below).refusal
        assert "holds other files" in medar("data", command, data, "--out", data).refusal


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\nspacing:", "\nspacin:", "did you mean 'spacing'"),
        ("kind: percentiles", "kind: percentile", "intensity.other.kind"),
        ("low: 0.5", "lo: 0.5", "did you mean 'low'"),
        ("nonfinite: error", "nonfinte: error", "did you mean 'nonfinite'"),
        ("size: [8, ", "size: [7, ", "size must be a multiple of downsampling"),
        ("mode: volume", "mode: [volume", "not valid YAML"),
    ],
)
def test_a_plan_with_a_mistake_names_file_and_key(
    medar: Medar, data: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    out = tmp_path / "out"
    assert medar("data", "plan", data, "--out", out).code == 0
    plan = out / "plan.yaml"
    text = plan.read_text()
    assert old in text
    plan.write_text(text.replace(old, new))
    refusal = medar("data", "prepare", data, "--out", out).refusal
    assert str(plan) in refusal
    assert message in refusal
    assert not (out / "cases.jsonl").exists()


def test_json_is_one_object_and_nothing_else(medar: Medar, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = json.loads(medar("data", "plan", data, "--out", out, "--json").out)
    assert plan["latent"] == [
        n // f for n, f in zip(plan["size"], plan["downsampling"], strict=True)
    ]
    done = json.loads(medar("data", "prepare", data, "--out", out, "--json").out)
    assert (done["made"], done["kept"], done["failed"]) == (4, 0, {})
    again = json.loads(medar("data", "prepare", data, "--out", out, "--json").out)
    assert (again["made"], again["kept"], again["failed"]) == (0, 4, {})


def test_the_plan_lists_cases_that_could_not_be_measured(
    medar: Medar, data: Path, tmp_path: Path
) -> None:
    (data / "images" / "c1.nii.gz").write_bytes(b"")
    result = medar("data", "plan", data, "--out", tmp_path / "out")
    assert result.code == 1
    line = next(line for line in result.out.splitlines() if "not measured" in line)
    assert line.split()[0] == "c1"
    assert str(data / "images" / "c1.nii.gz") in line
    result = medar("data", "plan", data, "--out", tmp_path / "out", "--json")
    assert (result.code, list(json.loads(result.out)["failed"])) == (1, ["c1"])


def test_a_bad_case_is_skipped_with_its_reason(
    medar: Medar, data: Path, write: Write, tmp_path: Path
) -> None:
    (data / "images" / "c1.nii.gz").write_bytes(b"")
    odd = np.zeros((8, 10, 6), np.int16)
    odd[4, 4, 4] = -1
    write("data/labels/c2.nii.gz", odd)
    result = medar("data", "prepare", data, "--out", tmp_path / "out", "--json")
    assert result.code == 1
    failed = json.loads(result.out)["failed"]
    assert sorted(failed) == ["c1", "c2"]
    assert "Empty file" in failed["c1"]
    assert "label values -1" in failed["c2"]
    assert sorted(prepared(tmp_path / "out")) == ["c0", "c3"]


def test_a_changing_data_set_keeps_splits_and_leaves_no_stale_entry(
    medar: Medar, data: Path, write: Write, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    medar("data", "prepare", data, "--out", out)
    before = prepared(out)
    write("data/images/d0.nii.gz", seed=9)
    assert json.loads(medar("data", "prepare", data, "--out", out, "--json").out)["made"] == 1
    grown = prepared(out)
    assert {name: grown[name]["split"] for name in before} == {
        name: line["split"] for name, line in before.items()
    }
    write("data/labels/d0.nii.gz", np.ones((8, 10, 6), np.uint8))
    (data / "images" / "c1.nii.gz").unlink()
    done = json.loads(medar("data", "prepare", data, "--out", out, "--json").out)
    assert (done["made"], done["kept"]) == (1, 3)
    named = {line[part] for line in prepared(out).values() for part in ("image", "label")}
    assert {path.stem for path in (out / "arrays").iterdir()} == named


def test_later_reading_options_keep_the_others_of_the_plan(
    medar: Medar, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    medar("data", "plan", data, "--out", out, "--assume-spacing", "1,1,2.5")
    medar("data", "prepare", data, "--out", out, "--nonfinite", "min")
    reading = Plan.load(out / "plan.yaml").reading
    assert (reading.assume_spacing, reading.nonfinite) == ((1.0, 1.0, 2.5), "min")


def test_cases_with_another_number_of_channels_are_skipped(
    medar: Medar, data: Path, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).normal(size=(2, 8, 10, 6)).astype(np.float32)
    write_nifti(data / "images" / "two.nii.gz", Volume.from_array(noise, np.eye(4)))
    out = tmp_path / "out"
    result = medar("data", "prepare", data, "--out", out, "--channels", "--json")
    reason = "2 channels; the plan has 1; give it all of these and no others"
    assert json.loads(result.out)["failed"] == {"two": reason}


def test_unnamed_channels_of_ct_are_windowed(medar: Medar, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 300, size=(2, 8, 10, 6)).astype(np.float32)
    write_nifti(tmp_path / "set" / "a.nii.gz", Volume.from_array(noise, np.eye(4)))
    out = tmp_path / "out"
    options = ("--channels", "--modality", "CT")
    assert medar("data", "prepare", tmp_path / "set", "--out", out, *options).code == 0
    plan = Plan.load(out / "plan.yaml")
    assert plan.channels == ("0", "1")
    assert {rule.kind for rule in plan.intensity.values()} == {"window"}


def test_ct_without_a_stated_modality_gives_a_warning(
    medar: Medar, write: Write, tmp_path: Path
) -> None:
    air = np.full((8, 10, 6), -1000.0, np.float32)
    air[2:6, 2:8, 1:5] = np.random.default_rng(0).normal(40, 300, (4, 6, 4))
    air[0] = -1024.0
    write("set/a.nii.gz", air)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = medar("data", "plan", tmp_path / "set", "--out", tmp_path / "out", "--json")
    assert result.err.startswith("medar: warning: 1 volume of unknown modality")
    assert "--modality CT" in result.err
    assert json.loads(result.out)["intensity"]["other"]["kind"] == "percentiles"
    again = ("data", "prepare", tmp_path / "set", "--out", tmp_path / "out", "--modality", "CT")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert "its rule 'other' applies to CT volumes" in medar(*again).err
    result = medar("data", "plan", tmp_path / "set", "--out", tmp_path / "out", "--modality", "CT")
    assert result.err == ""
    assert medar(*again).err == ""


def test_a_folder_in_use_is_not_touched(medar: Medar, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    out = tmp_path / "out"
    with exclusive(out):
        refusal = medar("data", "prepare", data, "--out", out).refusal
    assert "another medar is at work" in refusal
    assert medar("data", "prepare", data, "--out", out).code == 0


def test_exclusive_frees_the_folder_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(MedarError, match="mine"), exclusive(tmp_path):
        raise MedarError("mine")
    with exclusive(tmp_path):
        assert tmp_path.is_dir()


SLEEPERS = """
    import os, sys, time
    from medar.parallel import run_parallel

    def work(item):
        os.write(1, f"{os.getpid()}\\n".encode())
        time.sleep(60)

    if __name__ == "__main__":
        list(run_parallel(work, [1, 2], workers=2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "sleepers.py"
    script.write_text(textwrap.dedent(SLEEPERS))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 20
    while any(_runs(worker) for worker in workers) and time.monotonic() < until:
        time.sleep(0.05)
    parent.stdout.close()
    assert not [worker for worker in workers if _runs(worker)]


def _runs(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
