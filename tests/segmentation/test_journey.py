"""From few labels to other programs: DICOM SEG, and a MONAI bundle that runs without medar."""

import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_files import texts, write_classic

from medar.cli.main import main
from medar.volume import Volume, read_volume

PLAIN_MONAI = """
import sys

sys.modules["medar"] = None  # an import of it is an error
from monai.bundle import ConfigParser

parser = ConfigParser()
parser.read_config("configs/inference.json")
parser["bundle_root"] = "."
parser.get_parsed_content("run")
"""


def medar(line: str) -> None:
    """Run a command."""
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 0, line


def write_series(folder: Path, volume: Volume) -> None:
    """A volume as a DICOM series: columns to the left, rows to the back, slices upwards."""
    x, y, z = volume.spacing
    stack = volume.array[0, ::-1, ::-1].transpose(2, 1, 0).round().astype(np.int16)
    write_classic(folder, stack, step=(0.0, 0.0, z), PixelSpacing=texts((y, x)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::medar.errors.RangeWarning")
def test_from_few_labels_to_other_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    medar("data phantoms scans --n 6 --spacing 16")
    medar("data prepare scans --out prepared --workers 1")
    medar(
        "segmentation train demo --data prepared --out organs --labels 50% --untracked "
        "backbone.width=4 training.steps=15 training.learning_rate=0.02 training.evaluate_every=15"
    )

    scan = Path("scans/imagesTr/phantom_0003.nii.gz")
    volume = read_volume(scan, modality="CT")
    write_series(Path("series"), volume)
    medar("segment organs series organs.dcm --device cpu --mirrors none")
    seg = pydicom.dcmread("organs.dcm")
    assert seg.Modality == "SEG"
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.4"
    names = {one.SegmentLabel for one in seg.SegmentSequence}
    assert "lung_left" in names or "lung left" in names, names
    assert 0.02 < seg.pixel_array.sum() / np.prod(volume.shape) < 0.9

    medar("export organs bundle --to bundle")
    Path("bundle/input").mkdir()
    Path("bundle/input/scan.nii.gz").write_bytes(scan.read_bytes())
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "ignore", "-c", PLAIN_MONAI]
    subprocess.run(command, cwd="bundle", env=outside, check=True, capture_output=True)
    medar(f"segment organs {scan} own.nii.gz --device cpu --mirrors none --modality CT")
    theirs = nibabel.load("bundle/eval/scan_labels.nii.gz")
    own = nibabel.load("own.nii.gz")
    np.testing.assert_allclose(theirs.affine, own.affine, atol=1e-4)
    agree = np.asarray(theirs.dataobj) == np.asarray(own.dataobj)
    assert agree.mean() > 0.9, agree.mean()
