"""The section of slices to scroll through: which volumes it shows, and the size of the page."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar.data.manifest import Case, Manifest
from medar.data.plan import Plan
from medar.data.prepare import prepare
from medar.errors import MedarError
from medar.report.blocks import Report, Section, Stacks
from medar.report.folder import RunFolder
from medar.report.render import to_html, to_markdown
from medar.report.sections.slices import slices
from medar.report.stacks import make_stacks
from medar.volume import Volume, write_nifti


@pytest.fixture
def run(finished: Path, tmp_path: Path, sample: Any) -> Path:
    """A copy of the finished run with data that was really prepared: "one" is black, "two" not."""
    copy = Path(shutil.copytree(finished, tmp_path / "small"))
    plan = Plan.load(copy / "prepared" / "plan.yaml")
    shutil.rmtree(copy / "prepared")
    cases = []
    for name, array in (("one", np.full_like(sample, -900.0)), ("two", sample)):
        image = tmp_path / f"{name}.nii.gz"
        write_nifti(image, Volume(array=array[None], affine=np.diag([*plan.spacing, 1.0])))
        cases.append(Case(id=name, images=(image,), modality="CT", split="train"))
    prepare(Manifest(root=tmp_path, source="MSD", cases=tuple(cases)), plan, copy / "prepared",
            workers=1)  # fmt: skip
    return copy


def test_only_samples_are_shown_unless_real_volumes_are_asked_for(run: Path) -> None:
    (block,) = slices(RunFolder(run))
    assert isinstance(block, Stacks)
    assert [(one.name, one.real) for one in block.volumes] == [
        (f"sample_000{k}", False) for k in range(3)
    ]
    assert "real" not in to_html(page(block)).partition("<main")[2].partition("</main")[0]


def test_the_nearest_training_case_stands_beside_each_sample(run: Path) -> None:
    (block,) = slices(RunFolder(run, real_volumes=True))
    assert isinstance(block, Stacks)
    shown = [(one.name, one.real) for one in block.volumes]
    assert shown == [pair for k in range(3) for pair in ((f"sample_000{k}", False), ("one", True))]
    bright, black = (len(block.volumes[k].jpeg) for k in (0, 1))
    assert black < bright
    assert block.caption.startswith("Beside each sample: the training case nearest to it")


def test_a_damaged_sample_is_named(run: Path) -> None:
    path = run / "samples" / "sample_0001.nii.gz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(MedarError, match=r"sample_0001\.nii\.gz"):
        slices(RunFolder(run))


def page(block: Stacks) -> Report:
    return Report(
        title="t", subtitle="s", warnings=[], missing=[], sections=[Section("one", "One", [block])]
    )


def test_a_page_of_incompressible_volumes_stays_below_15_mb() -> None:
    generator = np.random.default_rng(0)
    volumes = [
        (f"n{k}", False, Volume(array=generator.uniform(size=(1, 80, 80, 80)).astype(np.float32),
                                affine=np.eye(4)))
        for k in range(12)
    ]  # fmt: skip
    stacks, _ = make_stacks(volumes)
    assert len(stacks) == 12
    size = len(to_html(page(Stacks(stacks, "c"))))
    # 3 MB remain for the other pictures.
    assert 4_000_000 < size < 12_000_000


def test_names_of_volumes_are_escaped() -> None:
    volume = Volume(array=np.zeros((1, 8, 8, 8), np.float32), affine=np.eye(4))
    name = '"><script>alert(1)</script>'
    stacks, _ = make_stacks([(name, True, volume)])
    report = page(Stacks(stacks, name))
    assert "<script>alert" not in to_html(report)
    assert "report.html" in to_markdown(report)
