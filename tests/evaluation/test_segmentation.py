"""`evaluate_segmentation`: annotated voxels, comparison of models, and errors."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_volumes import AFFINE, NAMES, cubes, data_set, write_case, write_maps
from torch import Tensor

from medar.data.manifest import Manifest
from medar.data.plan import IntensityRule, Plan
from medar.data.prepare import prepare
from medar.errors import MedarError
from medar.evaluation.segmentation import SegmentationReport, evaluate_segmentation
from medar.evaluation.segmentation.predictors import FilesPredictor
from medar.evaluation.segmentation.worst import WorstCases
from medar.files import read_json
from medar.report.artifacts import write_segmentation
from medar.segmentation.backbones import BackboneSettings
from medar.segmentation.files import segment_files
from medar.segmentation.segmenter import Segmenter
from medar.volume import Volume, write_nifti


class ByBrightness(torch.nn.Module):
    """Segments labels by the intensities that `write_case` gives them, here in [-1, 1]."""

    digest = "by brightness"

    def __init__(self, size: tuple[int, int, int] = (16, 12, 12)) -> None:
        super().__init__()
        self.plan = Plan(
            spacing=(1.0, 2.0, 3.0), mode="volume", size=size, downsampling=(4, 4, 4),
            intensity={"CT": IntensityRule(kind="window", low=0.0, high=400.0)}, labels=NAMES,
        )  # fmt: skip
        self.settings, self.mirrors = BackboneSettings(width=4), ()
        self.levels = torch.nn.Parameter(torch.tensor([-1.0, -0.5, 1.0]).view(1, 3, 1, 1, 1))

    def forward(self, volumes: Tensor) -> Tensor:
        return -40 * (volumes - self.levels).square()


@pytest.fixture
def data(tmp_path: Path) -> Manifest:
    """Four cases of three subjects."""
    subjects = ("a", "a", "b", "c")
    cases = [
        write_case(tmp_path, f"c{k}", cubes(), subject=subject)
        for k, subject in enumerate(subjects)
    ]
    return data_set(tmp_path, cases)


def files(folder: Path, *shifts: int) -> FilesPredictor:
    """Write label maps shifted by some voxels."""
    maps = {f"c{k}": cubes(shift) for k, shift in enumerate(shifts)}
    return FilesPredictor(write_maps(folder, maps))


def evaluate(models: Any, data: Any, **settings: Any) -> SegmentationReport:
    report = evaluate_segmentation(models, data, **settings)
    json.dumps(report.to_dict(), allow_nan=False)
    return report


def test_a_perfect_network(data: Manifest) -> None:
    model: Any = ByBrightness()
    report = evaluate(model, data)
    first = report.models[0]
    assert (first.dice_mean, first.hd95_mean, first.nsd_mean) == (1, 0, 1)
    assert (report.cases, report.subjects, report.tolerance) == (4, 3, 3)
    assert report.dice == {"cube": 1, "block": 1}
    assert first.labels["cube"].volume is not None
    assert first.labels["cube"].volume.bias == 0
    assert first.calibration is not None
    assert first.calibration.error < 0.05
    assert report.to_dict()["dice_mean"] == 1


def test_missed_structures_lower_the_scores(data: Manifest) -> None:
    """The middle eight of sixteen voxels along x: half of the cube, all of the block."""
    narrow: Any = ByBrightness(size=(8, 12, 12))
    first = evaluate(narrow, data).models[0]
    assert first.labels["cube"].dice == pytest.approx(2 * 2 / (2 + 4))
    assert first.labels["block"].missed == 0
    assert first.labels["block"].dice == 1


def test_the_reference_is_on_the_original_grid_even_for_a_prepared_folder(
    data: Manifest, tmp_path: Path
) -> None:
    coarse = replace(ByBrightness().plan, spacing=(4.0, 4.0, 6.0), size=(4, 8, 8))
    prepare(data, coarse, tmp_path / "prepared", workers=1)
    model: Any = ByBrightness()
    from_folder, from_data = evaluate(model, tmp_path / "prepared"), evaluate(model, data)
    assert from_folder.to_dict() == from_data.to_dict()


def test_evaluating_a_network_equals_evaluating_its_files(data: Manifest, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plan = replace(ByBrightness().plan, spacing=(1.5, 1.5, 3.0))
    network = Segmenter(BackboneSettings(width=4), plan).eval()
    for case in data:
        out = tmp_path / "maps" / f"{case.id}.nii.gz"
        assert len(list(segment_files(network, case.images[0], out, modality="CT"))) == 1
    report = evaluate([network, FilesPredictor(tmp_path / "maps")], data)
    first, second = report.models
    assert first.cases == second.cases
    assert any(case.dice for case in first.cases), "something of it is right"


def test_files_score_by_their_shift(data: Manifest, tmp_path: Path) -> None:
    report = evaluate(files(tmp_path / "maps", 0, 0, 2, 2), data, tolerance=1.5)
    cube, block = (report.models[0].labels[name] for name in ("cube", "block"))
    assert cube.dice == pytest.approx((1 + 1 + 0.5 + 0.5) / 4)
    assert block.dice == pytest.approx((1 + 1 + 1 / 3 + 1 / 3) / 4)
    assert report.dice_mean == pytest.approx((0.75 + 2 / 3) / 2)
    assert cube.hd95 == 1
    assert report.models[0].calibration is None
    assert cube.dice_interval is not None
    assert cube.dice_interval[0] <= cube.dice <= cube.dice_interval[1]


def test_unannotated_labels_are_ignored(tmp_path: Path) -> None:
    cases = [
        write_case(tmp_path, "c0", cubes()),
        write_case(tmp_path, "c1", cubes(four=0), annotated=(1,)),
        write_case(tmp_path, "c2", cubes(), annotated=()),
        write_case(tmp_path, "c3", None),
    ]
    report = evaluate(files(tmp_path / "maps", 0, 2), data_set(tmp_path, cases))
    block = report.models[0].labels["block"]
    assert (report.cases, block.cases, block.unknown, block.false_positive) == (2, 1, 1, 0)
    assert block.dice == 1
    assert report.models[0].labels["cube"].dice == pytest.approx(0.75)
    assert any("2 cases of the split test are not annotated" in note for note in report.notes)


def test_unknown_voxels_are_ignored(tmp_path: Path) -> None:
    truth = cubes()
    truth[4:8] = np.where(cubes(2)[4:8] == 1, 9, truth[4:8])
    manifest = data_set(tmp_path, [write_case(tmp_path, "c0", truth)], ignore_label=9)
    found = evaluate(files(tmp_path / "maps", 2), manifest, tolerance=0.5).models[0].cases[0]
    assert (found.name, found.dice, found.state) == ("cube", 0, "missed")
    assert found.predicted_ml == 0
    model: Any = ByBrightness()
    calibration = evaluate(model, manifest).models[0].calibration
    assert calibration is not None
    assert calibration.error < 0.05, "what is as bright as label 9 is unknown"


def test_a_label_missing_on_one_side(tmp_path: Path) -> None:
    truths = {"c0": cubes(four=0), "c1": cubes(), "c2": cubes(four=0), "c3": cubes()}
    made = {"c0": cubes(), "c1": cubes(four=0), "c2": cubes(four=0), "c3": cubes()}
    cases = [write_case(tmp_path, name, truth) for name, truth in truths.items()]
    predictor = FilesPredictor(write_maps(tmp_path / "maps", made))
    block = evaluate(predictor, data_set(tmp_path, cases)).models[0].labels["block"]
    assert (block.cases, block.false_positive, block.missed, block.absent) == (3, 1, 1, 1)
    assert block.dice == pytest.approx(1 / 3)
    assert block.nsd == pytest.approx(1 / 3)
    assert block.hd95 == 0, "of the one case that both have it in"
    assert block.volume is not None
    assert block.volume.bias == 0


def test_a_label_absent_from_every_case(tmp_path: Path) -> None:
    manifest = data_set(tmp_path, [write_case(tmp_path, "c0", cubes(four=0))])
    maps = write_maps(tmp_path / "maps", {"c0": cubes(four=0)})
    report = evaluate(FilesPredictor(maps), manifest)
    assert report.dice == {"cube": 1, "block": None}
    assert report.dice_mean == 1
    assert report.models[0].labels["block"].volume is None


def test_models_are_compared_with_the_first(data: Manifest, tmp_path: Path) -> None:
    models = [files(tmp_path / f"m{k}", k, k, k, k) for k in (1, 0, 2)]
    report = evaluate(models, data)
    better, worse = (comparison.overall["dice"] for comparison in report.comparisons)
    assert better is not None
    assert worse is not None
    assert better.difference > 0 > worse.difference
    assert (better.effect, worse.effect) == (1, -1)
    assert better.subjects == 3
    dice = [model.dice_mean for model in report.models]
    assert dice[0] is not None
    assert dice[1] is not None
    assert better.difference == pytest.approx(dice[1] - dice[0])
    assert [comparison.second for comparison in report.comparisons] == [
        model.name for model in report.models[1:]
    ]
    assert evaluate(models, data).to_dict() == report.to_dict(), "drawn by the seed"


def test_written_files_agree_with_the_report(data: Manifest, tmp_path: Path) -> None:
    out, worst = tmp_path / "out", WorstCases(most=2)
    models = [files(tmp_path / "one", 0, 1, 2, 0), files(tmp_path / "two", 0, 0, 0, 0)]
    report = evaluate(models, data, worst=worst)
    write_segmentation(report, worst, out)
    assert [item.name for item in worst.kept] == ["c2", "c1"]
    stored = read_json(out / "report.json")
    assert stored == json.loads(json.dumps(report.to_dict()))
    with (out / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 2
    mine = [float(r["dice"]) for r in rows if r["model"] == models[0].name and r["label"] == "1"]
    assert np.mean(mine) == pytest.approx(stored["dice"]["cube"])
    page = (out / "report.html").read_text()
    assert "Worst cases" in page
    assert "Bland-Altman" in page
    assert "no probabilities: label maps were evaluated" in page
    assert (out / "report" / "worst.png").read_bytes().startswith(b"\x89PNG")
    assert 'src="http' not in page
    assert "c2" in (out / "report.md").read_text()


def test_worst_cases_show_the_slices_that_are_most_wrong(data: Manifest, tmp_path: Path) -> None:
    made = cubes()
    made[2:6, 3:7, 5] = 0
    made[3, 3:7, 2:6] = 0
    maps = write_maps(tmp_path / "maps", {**{f"c{k}": cubes() for k in range(4)}, "c3": made})
    worst = WorstCases(most=1)
    evaluate(FilesPredictor(maps), data, worst=worst)
    [case] = worst.kept
    assert case.name == "c3"
    sagittal, _, axial = case.slices
    assert sagittal.image.shape[0] == axial.image.shape[2] == 1
    for slice_ in (sagittal, axial):
        wrong = slice_.truth.array != slice_.predicted.array
        assert int(wrong.sum()) == 16
        assert slice_.image.grid.matches(slice_.truth.grid)
    np.testing.assert_allclose(
        axial.image.affine[2, 3], AFFINE[2, 2] * 5, err_msg="it knows where it lies"
    )


def test_the_picture_of_a_perfect_case_shows_labels(data: Manifest, tmp_path: Path) -> None:
    worst = WorstCases(most=1)
    evaluate(files(tmp_path / "maps", 0, 0, 0, 0), data, worst=worst)
    assert all(slice_.truth.array.any() for slice_ in worst.kept[0].slices)


def moved(folder: Path) -> FilesPredictor:
    for k in range(4):
        other = AFFINE.copy()
        other[0, 3] = 5
        write_nifti(folder / f"c{k}.nii.gz", Volume.from_array(cubes(), other))
    return FilesPredictor(folder)


def test_invalid_inputs_are_refused(data: Manifest, tmp_path: Path) -> None:
    maps = files(tmp_path / "maps", 0, 0, 0, 0)
    odd = FilesPredictor(write_maps(tmp_path / "odd", {f"c{k}": 7 * cubes() for k in range(4)}))
    for part in "ab":
        write_maps(tmp_path / "twice" / part, {"c0": cubes()})
    model: Any = ByBrightness()
    renamed = replace(data, labels={1: "cube", 4: "brick"})
    unlabelled = replace(data, labels={}, cases=data.cases)
    gone = replace(data, cases=(replace(data.cases[0], label=tmp_path / "gone.nii.gz"),))
    for models, manifest, settings, message in (
        ([], data, {}, "no model to evaluate"),
        ([maps, maps], data, {}, "the same name"),
        (files(tmp_path / "few", 0), data, {}, "3 of 4 cases have no label map.*c1.nii.gz"),
        (FilesPredictor(tmp_path / "none"), data, {}, "no such folder"),
        (FilesPredictor(tmp_path / "twice"), data, {}, "are both label maps of c0; keep one"),
        (odd, data, {}, "unknown label values 7, 28; expected 0 and 1, 4"),
        (moved(tmp_path / "moved"), data, {}, "its corners are"),
        (maps, data, {"split": "val"}, "none annotated"),
        (maps, data, {"tolerance": 0.0}, "tolerance must be greater than 0"),
        (maps, data, {"limit": 0}, "limit must be at least 1, got 0"),
        (model, renamed, {}, "label 4 is 'brick', but the model calls it 'block'"),
        (maps, unlabelled, {}, "names no labels"),
        (maps, gone, {}, "gone.nii.gz: no such file; label maps are evaluated on"),
    ):
        with pytest.raises(MedarError, match=message) as refused:
            evaluate(models, manifest, **settings)
        assert "\n" not in str(refused.value)


def test_the_limit_picks_cases_evenly_from_the_split(data: Manifest, tmp_path: Path) -> None:
    report = evaluate(files(tmp_path / "maps", 0, 0, 0, 1), data, limit=2)
    assert {case.case for case in report.models[0].cases} == {"c0", "c3"}
