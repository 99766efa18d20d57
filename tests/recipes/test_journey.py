"""Without a configuration: from an empty folder and three slices per scan to synthetic volumes."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medar.cli.main import main
from medar.data.phantoms import make_phantom
from medar.volume import Volume, write_nifti


def medar(*words: object) -> None:
    """Run a command."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    assert ended.value.code == 0, words


def write_three_slices(folder: Path, number: int) -> None:
    """An MR of thick slices in a file that does not state its modality."""
    image = make_phantom(number, modality="mr", spacing=16.0).image
    middle = image.array.shape[3] // 2
    affine = image.affine.copy()
    affine[:3, 3] += (middle - 1) * affine[:3, 2]
    slices = Volume(array=image.array[..., middle - 1 : middle + 2], affine=affine)
    write_nifti(folder / f"patient{number}.nii.gz", slices)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*its codebook has collapsed")  # it has seconds to train
def test_without_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(10):
        write_three_slices(Path("scans"), number)
    words = ("--data", "scans", "--out", "run", "--minutes", 0.15, "--untracked", "--json")
    medar("run", "synthesis", *words)
    printed = capsys.readouterr()
    assert "no configuration: chosen from the data (10 of 10 volumes measured)" in printed.err
    answer = json.loads(printed.out)
    assert all(stage["status"] == "done" for stage in answer["stages"].values())
    assert answer["verdict"]["grade"] in ("good", "rough", "poor")
    assert answer["verdict"]["command"].startswith("medar run synthesis run/config.yaml")
    assert Path(answer["report"]).is_file()

    medar("status", "run", "--json")
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert {stage["state"] for stage in stages} == {"done"}
    medar("synthesize", "run", "more", "-n", 1, "--device", "cpu")
    made = nibabel.load("more/sample_0000.nii.gz")
    assert np.isfinite(made.get_fdata()).all()
    sides = np.multiply(made.shape, made.header.get_zooms())
    assert np.argmin(sides) == 2, "as thin as the scans"
