"""The panel for medical detail: organs, borders, recovered contrast, limits, and the page."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_volumes import make_plan, make_tokenizer, smooth
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d

from medar.data.loading import PreparedDataset
from medar.data.manifest import Case, Manifest
from medar.data.plan import IntensityRule
from medar.errors import MedarError
from medar.evaluation.reconstruction.organs import border_gradients
from medar.evaluation.reconstruction.panel import Panel, evaluate_panel, methods_of
from medar.evaluation.reconstruction.panel_report import (
    DetectionLimit,
    StructureReport,
    contrast_names,
    detection_limits,
    summary,
)
from medar.evaluation.reconstruction.structures import StructureSettings
from medar.report.artifacts import write_panel
from medar.segmentation.backbones import BackboneSettings
from medar.segmentation.segmenter import Segmenter
from medar.tokenizer.detail import DetailConfig, DetailDecoder
from medar.volume import Volume, write_nifti

PrepareWith = Callable[..., Path]
SIDE = 24
FEW = StructureSettings(diameters=(2, 4, 8), widths=(1, 3, 6), contrasts=(-300, 300), cases=2)


def identity(volumes: Tensor) -> Tensor:
    return volumes


def nothing(volumes: Tensor) -> Tensor:
    return torch.zeros_like(volumes)


def fainter(volumes: Tensor) -> Tensor:
    return 0.75 * volumes + 0.1


def blurred(volumes: Tensor) -> Tensor:
    return avg_pool3d(volumes, 3, stride=1, padding=1, count_include_pad=False)


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prepared CT cases of 24 x 24 x 24: a bright organ, a dark one, and noise."""
    from medar.data.prepare import prepare

    folder = tmp_path_factory.mktemp("bodies")
    cases = []
    for number in range(3):
        noise = smooth(1, SIDE, SIDE, SIDE, seed=number)[0, 0].numpy()
        label = np.zeros((SIDE,) * 3, np.uint8)
        label[3:10, 4:20, 4:20], label[14:21, 4:20, 4:20] = 1, 2
        array = 40 * noise + 200 * (label == 1) - 150 * (label == 2)
        image, labels = folder / f"b{number}.nii.gz", folder / f"b{number}_label.nii.gz"
        write_nifti(image, Volume.from_array(array.astype(np.float32), np.eye(4)))
        write_nifti(labels, Volume.from_array(label, np.eye(4)))
        cases.append(
            Case(
                id=f"b{number}", images=(image,), label=labels, modality="CT", split="test",
                annotated=(1,) if number == 2 else None,
            )
        )  # fmt: skip
    manifest = Manifest(
        root=folder, source="MSD", cases=tuple(cases), labels={1: "left", 2: "right"}
    )
    prepare(manifest, make_plan(size=(SIDE,) * 3), folder / "prepared", workers=1)
    return folder / "prepared"


@pytest.fixture(scope="module")
def panel(bodies: Path) -> Panel:
    methods = {"same": identity, "none": nothing, "fainter": fainter, "blurred": blurred}
    return evaluate_panel(methods, bodies, structures=FEW)


def recovered(panel: Panel, method: str, shape: str = "sphere") -> dict[float, float]:
    """By size, for structures brighter than their surroundings."""
    rows = panel.report.methods[method].structures
    return {one.voxels: one.recovered for one in rows if one.shape == shape and one.contrast > 0}


def test_the_identity_loses_nothing(panel: Panel) -> None:
    same = panel.report.methods["same"]
    assert same.summary == "Loses none of the lesions; none of the tubes; none of the plates."
    for organ in same.organs.values():
        assert (organ.bias, organ.spread_ratio, organ.gradient_ratio) == (0, 1, 1)
    assert all(one.recovered == pytest.approx(1) for one in same.structures)
    assert all(one.lost == 0 for one in same.structures)
    assert all(one.voxels == one.smallest for one in same.limits)


def test_a_constant_loses_everything(panel: Panel) -> None:
    none = panel.report.methods["none"]
    assert none.summary == (
        "Loses all lesions up to 8 voxels (8 mm) at ±300 HU; all tubes up to 6 voxels (6 mm) at "
        "±300 HU; all plates up to 6 voxels (6 mm) at ±300 HU."
    )
    assert all(one.recovered == 0 and one.lost == 1 for one in none.structures)
    assert all(one.voxels is None and one.mm is None for one in none.limits)
    organ = none.organs["left"]
    assert (organ.spread_ratio, organ.gradient_ratio) == (0, 0)
    assert organ.bias == pytest.approx(-organ.original)


def test_a_change_of_contrast_is_measured_up_to_rounding(panel: Panel) -> None:
    fainter = panel.report.methods["fainter"]
    assert fainter.organs.keys() == {"left", "right"}
    for organ in fainter.organs.values():
        assert organ.bias == pytest.approx(100 - 0.25 * organ.original, abs=0.2)
        assert organ.spread_ratio == pytest.approx(0.75, rel=1e-3)
        assert organ.gradient_ratio == pytest.approx(0.75, rel=1e-3)
    assert fainter.organs["left"].original == pytest.approx(200, abs=15)
    assert fainter.organs["right"].original == pytest.approx(-150, abs=15)
    assert fainter.organs["left"].gradient == pytest.approx(200, abs=15)
    assert fainter.organs["right"].gradient == pytest.approx(150, abs=15)
    assert all(one.recovered == pytest.approx(0.75, rel=5e-3) for one in fainter.structures)
    assert panel.report.unit == "HU"
    # The last case is annotated for "left" only.
    assert (fainter.organs["left"].cases, fainter.organs["right"].cases) == (3, 2)


def test_blur_loses_small_structures_first(panel: Panel) -> None:
    for shape in ("sphere", "tube", "plate"):
        values = list(recovered(panel, "blurred", shape).values())
        assert values == sorted(values), shape
        assert values[0] < 0.5 < values[-1], shape
    blurred = panel.report.methods["blurred"]
    for organ in blurred.organs.values():
        assert abs(organ.bias) < 40
        assert organ.spread_ratio is not None
        assert organ.spread_ratio < 1
        assert organ.gradient_ratio == pytest.approx(1 / 3, abs=0.06)
    sphere = next(one for one in blurred.limits if one.shape == "sphere")
    assert sphere.voxels == 4
    assert "lesions smaller than 4 voxels (4 mm) at ±300 HU" in blurred.summary
    # One layer of voxels is blurred less than a ball.
    assert recovered(panel, "blurred", "plate")[1] > recovered(panel, "blurred")[2]


def test_batches_and_methods_change_nothing(panel: Panel, bodies: Path) -> None:
    alone = evaluate_panel({"blurred": blurred}, bodies, structures=FEW, batch_size=3)
    expected = panel.report.methods["blurred"]
    found = alone.report.methods["blurred"]
    assert found.summary == expected.summary
    for one, other in zip(found.structures, expected.structures, strict=True):
        assert one.recovered == pytest.approx(other.recovered, rel=1e-4)
    assert found.organs["left"].bias == pytest.approx(expected.organs["left"].bias, rel=1e-4)
    again = evaluate_panel({"blurred": blurred}, bodies, structures=FEW, batch_size=3)
    assert again.report == alone.report
    elsewhere = evaluate_panel({"blurred": blurred}, bodies, structures=replace(FEW, seed=1))
    assert elsewhere.report.methods["blurred"].structures != found.structures


def test_structures_that_do_not_fit_the_window_are_left_out(bodies: Path) -> None:
    faint = StructureSettings(diameters=(4,), widths=(2,), contrasts=(100, 3000), cases=1)
    report = evaluate_panel({"same": identity}, bodies, structures=faint, limit=2).report
    assert {one.contrast for one in report.methods["same"].structures} == {100}
    assert sum(row.recovered is None for row in report.case_structures) == 3
    assert any("3 of 6 structures left out" in note for note in report.notes)
    assert any("2 cases, fewer than 20" in note for note in report.notes)
    assert (report.cases, report.structure_cases) == (2, 1)


def test_the_gradient_across_a_border() -> None:
    step = torch.zeros(12, 12, 12, dtype=torch.float64)
    step[6:] = 10
    inside = step > 0
    gradients = border_gradients(step, step, inside, ~inside, (2.0, 1.0, 1.0))
    assert gradients == (pytest.approx(5), pytest.approx(5))
    moved = torch.roll(step, 1, 0)
    moved[0] = 0
    assert border_gradients(step, moved, inside, ~inside, (1, 1, 1)) == (pytest.approx(10), 0)
    noise = torch.randn(step.shape, generator=torch.Generator().manual_seed(0)).double()
    noisy = border_gradients(step, step + noise, inside, ~inside, (1, 1, 1))
    assert noisy == (pytest.approx(10), pytest.approx(10, abs=0.5))
    darker = border_gradients(-step, -0.5 * step, inside, ~inside, (1, 1, 1))
    assert darker == (pytest.approx(10), pytest.approx(5))
    # Unknown voxels are no border; nor is an edge without contrast.
    known = ~inside
    known[5] = False
    assert border_gradients(step, step, inside, known, (1, 1, 1)) is None
    flat = torch.ones_like(step)
    assert border_gradients(flat, flat, inside, ~inside, (1, 1, 1)) is None


class Threshold(nn.Module):
    """Stands for a segmenter: bright voxels are "left", dark ones "right"."""

    digest = "threshold"

    def __init__(self, plan: Any) -> None:
        super().__init__()
        self.plan = plan
        self.at = nn.Parameter(torch.tensor(0.1))

    def forward(self, volumes: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(volumes), volumes - self.at, -volumes - 0.075], dim=1)


def test_a_segmenter_is_compared_on_originals_and_reconstructions(bodies: Path) -> None:
    plan = PreparedDataset(bodies).plan
    found = evaluate_panel(
        {"same": identity, "none": nothing}, bodies, structures=FEW, limit=3,
        segmenter=Threshold(plan),  # type: ignore[arg-type]
    ).report  # fmt: skip
    for name, after in (("same", 1.0), ("none", 0.0)):
        for organ in found.methods[name].organs.values():
            assert organ.dice_original == pytest.approx(1.0, abs=0.05)
            assert organ.dice == pytest.approx(after * (organ.dice_original or 0))
    assert found.methods["same"].organs["left"].dice_change == (0, 0)
    assert found.protocol["segmenter"] == "threshold"
    other = Segmenter(BackboneSettings(kind="dynunet", width=4), replace(plan, labels={1: "left"}))
    with pytest.raises(MedarError, match=r"has labels .*, but the segmenter was trained for"):
        evaluate_panel({"same": identity}, bodies, segmenter=other)


def test_channels_are_measured_one_by_one(data: Manifest, prepare_with: PrepareWith) -> None:
    cases = tuple(replace(case, images=case.images * 2) for case in data)
    window = IntensityRule(kind="window", low=-1000.0, high=1000.0)
    folder = prepare_with(
        data.with_cases(cases), channels=("one", "two"), intensity={"one": window, "two": window}
    )

    def second(volumes: Tensor) -> Tensor:
        return torch.cat([volumes[:, :1], torch.zeros_like(volumes[:, 1:])], dim=1)

    method = evaluate_panel({"second": second}, folder).report.methods["second"]
    assert method.organs["left (one)"].gradient_ratio == 1
    assert method.organs["left (two)"].gradient_ratio == 0
    assert all(one.recovered == pytest.approx(0.5, rel=1e-3) for one in method.structures)


def test_percentile_windows_are_compared_in_fractions(
    data: Manifest, prepare_with: PrepareWith
) -> None:
    rule = IntensityRule(kind="percentiles", low=0.0, high=100.0)
    report = evaluate_panel({"fainter": fainter}, prepare_with(intensity={"other": rule})).report
    assert report.unit == "fraction of the intensity window"
    organ = report.methods["fainter"].organs["left"]
    # x in [0, 1] becomes 0.75 x + 0.175.
    assert organ.bias == pytest.approx(0.175 - 0.25 * organ.original, abs=5e-4)
    assert report.protocol["structures"]["contrasts"] == [-0.3, -0.1, 0.1, 0.3]


def test_data_without_labels_have_no_organs(data: Manifest, prepare_with: PrepareWith) -> None:
    cases = tuple(replace(case, label=None, annotated=None) for case in data)
    folder = prepare_with(replace(data, cases=cases, labels={}), labels={})
    report = evaluate_panel({"same": identity}, folder).report
    assert report.methods["same"].organs == {}
    assert any("no case has a label" in note for note in report.notes)
    assert any("no sphere of 6, 8, 12 voxels" in note for note in report.notes)


def test_a_tokenizer_is_a_method(prepared: Path) -> None:
    tokenizer = make_tokenizer(make_plan())
    methods = methods_of(tokenizer)
    volumes = PreparedDataset(prepared, split="test")[0]["image"][None]
    made = methods["decoder"](volumes)
    decoded = tokenizer.decode_map(tokenizer.encode(volumes)).volume
    torch.testing.assert_close(made, decoded, rtol=1e-3, atol=1e-3)
    assert evaluate_panel(methods, prepared).report.methods.keys() == {"decoder"}


def test_the_detail_decoder_is_a_second_method(prepared: Path) -> None:
    tokenizer = make_tokenizer(make_plan())
    sizes = DetailConfig(strides=((2, 2, 2),), widths=(4, 6), steps=2)
    torch.manual_seed(0)
    detail = DetailDecoder(sizes).eval()
    torch.nn.init.normal_(detail.head.weight, std=0.2)
    tokenizer = tokenizer.with_detail(detail)
    assert methods_of(tokenizer, "none").keys() == {"decoder"}
    methods = methods_of(tokenizer, seed=3)
    volumes = PreparedDataset(prepared, split="test")[0]["image"].expand(2, -1, -1, -1, -1)
    decoded, made = methods["decoder"](volumes), methods["detail"](volumes)
    assert torch.equal(made[0], made[1])  # the same noise
    assert torch.equal(made, tokenizer.add_detail(decoded, [3, 3]))
    assert not torch.equal(made, decoded)
    assert not torch.equal(made, methods_of(tokenizer, 1, seed=3)["detail"](volumes))


def test_faulty_methods_are_refused(prepared: Path) -> None:
    for method, message in (
        (lambda volumes: volumes[..., :4], r"bad: must return the shape of its batch, \(2, 1, 8"),
        (lambda volumes: volumes / 0, "bad: returned values that are not finite"),
    ):
        with pytest.raises(MedarError, match=message):
            evaluate_panel({"bad": method}, prepared)
    with pytest.raises(MedarError, match="at least one function"):
        evaluate_panel({}, prepared)
    with pytest.raises(MedarError, match="limit must be at least 1, got 0"):
        evaluate_panel({"same": identity}, prepared, limit=0)


def structure(voxels: float, value: float, contrast: float = 0.1) -> StructureReport:
    return StructureReport(
        shape="sphere", contrast=contrast, voxels=voxels, mm=2 * voxels, cases=2, recovered=value,
        recovered_interval=None, lost=0.0,
    )  # fmt: skip


def limits(*values: float) -> DetectionLimit:
    rows = [structure(size, value) for size, value in zip((2, 3, 4), values, strict=True)]
    return detection_limits(rows)[0]


def test_a_size_is_detected_only_if_all_larger_ones_are() -> None:
    assert (limits(0.2, 0.5, 0.9).voxels, limits(0.2, 0.5, 0.9).mm) == (3, 6)
    assert limits(0.9, 0.2, 0.9).voxels == 4
    assert limits(0.9, 0.9, 0.2).voxels is None
    assert limits(0.6, 0.9, 0.8).voxels == 2
    rows = [structure(2, 0.1, 0.3), structure(4, 0.9, 0.3), structure(2, 0.9), structure(4, 0.9)]
    assert summary(detection_limits(rows), "HU") == (
        "Loses lesions smaller than 4 voxels (8 mm) at +0.3 HU."
    )
    assert summary([], "HU") == "No structure was inserted."


def test_contrasts_have_signs_and_units() -> None:
    assert contrast_names([-50, 50, 200], "HU") == "±50 and +200 HU"
    assert contrast_names([-0.3], "fraction of the intensity window") == "-30 % of the window"


def test_the_files_of_a_panel(panel: Panel, bodies: Path, tmp_path: Path) -> None:
    write_panel(panel, tmp_path)
    values = json.loads((tmp_path / "panel.json").read_text())
    assert values["methods"]["blurred"]["summary"] == panel.report.methods["blurred"].summary
    assert "case_organs" not in values
    with (tmp_path / "structures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["method", "case", "shape"]
    assert len(rows) == 4 * 2 * 2 * 9  # methods, cases, contrasts, sizes
    with (tmp_path / "organs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4 * 5
    page = (tmp_path / "report.md").read_text()
    for text in ("smaller than 4 voxels", "Detection limit", "> 8", "Not included", "--segmenter"):
        assert text in page
    assert (tmp_path / "report" / "spheres.png").read_bytes().startswith(b"\x89PNG")
    charts = sorted((tmp_path / "report").glob("structures-*.svg"))
    assert len(charts) == 3  # one per shape
    assert all(b"<svg" in chart.read_bytes() for chart in charts)
    assert (tmp_path / "report.html").is_file()
    assert [one.structure.size for one in panel.shown] == [2, 4, 8]
    assert list(panel.shown[0].slices) == ["original", "same", "none", "fainter", "blurred"]
    assert not panel.shown[0].slices["none"].any()
