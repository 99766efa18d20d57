"""Ensembles, class probabilities, and volumes outside the training range."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from small_segmenters import make_plan, make_segmenter, make_settings, smooth

from medar.data.prepared import Prepared
from medar.errors import MedarError, RangeWarning
from medar.segmentation.files import segment_files
from medar.segmentation.prediction import predict, predict_probabilities, segment
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.sliding_window import (
    PredictionSettings,
    predict_classes,
    predict_rows,
)
from medar.segmentation.training import make_task
from medar.segmentation.training_range import TrainingRange, out_of_range
from medar.volume import Volume, read_volume, write_nifti

PLAIN = PredictionSettings(mirrors=())
AFFINE = np.array([[-1.0, 0, 0, 4], [0, 0, 1.5, 5], [0, 1.2, 0, 6], [0, 0, 0, 1]])


def probabilities_of(*models: Segmenter, sides: tuple[int, int, int] = (16, 12, 8)) -> np.ndarray:
    image = torch.from_numpy(smooth(*sides))[None]
    [(_, blended)] = predict_rows(models, image, PLAIN)
    return blended.probabilities[0].numpy()


def other_segmenter() -> Segmenter:
    model = make_segmenter()
    torch.manual_seed(1)
    return Segmenter(model.settings, model.plan).eval()


def test_an_ensemble_of_equal_networks_equals_one_network() -> None:
    model = make_segmenter()
    assert np.array_equal(probabilities_of(model, model), probabilities_of(model))


def test_an_ensemble_averages_probabilities() -> None:
    first, second = make_segmenter(), other_segmenter()
    mean = (probabilities_of(first) + probabilities_of(second)) / 2
    np.testing.assert_allclose(probabilities_of(first, second), mean, atol=1e-6)
    assert np.abs(probabilities_of(first) - mean).max() > 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {3: "spleen", 7: "liver"}}, "network 2 .* labels"),
        ({"labels": {7: "spleen", 3: "liver"}}, "network 2 .* labels"),
        ({"spacing": (1.0, 1.0, 2.0)}, "spacing"),
        ({"size": (16, 12, 12)}, "size"),
    ],
)
def test_networks_with_different_plans_are_refused(
    changes: dict[str, object], message: str
) -> None:
    other = make_segmenter(make_plan(**changes))
    with pytest.raises(MedarError, match=message):
        probabilities_of(make_segmenter(), other)
    with pytest.raises(MedarError, match="no network"):
        predict_classes([], torch.zeros(1, 16, 12, 8))


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_probabilities_are_on_the_input_grid_and_sum_to_one(ending: str, tmp_path: Path) -> None:
    model = make_segmenter(make_plan(mode="patch", size=(8, 8, 8)))
    nib.save(nib.Nifti1Image(1000 * smooth(15, 9, 11), AFFINE), tmp_path / "c.nii")
    out = tmp_path / "made" / f"c{ending}"
    [(_, made)] = segment_files(
        model, tmp_path / "c.nii", out, PLAIN, modality="CT", probabilities=True
    )
    probabilities = nib.load(out.parent / f"c_probabilities{ending}")
    assert probabilities.shape == (15, 9, 11, 3)
    assert probabilities.get_data_dtype() == np.float32
    np.testing.assert_allclose(probabilities.affine, AFFINE)
    np.testing.assert_allclose(probabilities.get_qform(), AFFINE, atol=1e-5)
    values = probabilities.get_fdata()
    np.testing.assert_allclose(values.sum(-1), 1, atol=1e-6)
    assert values.min() >= 0
    about = json.loads((out.parent / "c.json").read_text())
    assert about["probabilities"] == ["background", "liver", "spleen"]
    assert {path.name for path in out.parent.iterdir()} == {
        made.name, "c.json", f"c_probabilities{ending}"
    }  # fmt: skip
    volume = read_volume(tmp_path / "c.nii", modality="CT")
    whole = predict_probabilities(model, volume, PLAIN)
    read = read_volume(out.parent / f"c_probabilities{ending}", channels=True)
    np.testing.assert_allclose(read.array, whole.array, atol=1e-6)
    assert np.array_equal(segment(model, volume, PLAIN).array, read_volume(made, labels=True).array)


def test_probabilities_do_not_depend_on_slabs(tmp_path: Path) -> None:
    model = make_segmenter(make_plan(mode="patch", size=(8, 8, 8)))
    volume = Volume.from_array(1000 * smooth(61, 9, 8), np.eye(4), modality="CT")
    whole = predict_probabilities(model, volume, PLAIN).array
    small = PredictionSettings(mirrors=(), memory_gib=2e-5)
    made = predict(model, volume, small, scratch=tmp_path)
    np.testing.assert_allclose(made.probabilities, whole, atol=1e-6)


def test_labels_are_the_argmax_of_the_probabilities() -> None:
    model = make_segmenter()
    volume = Volume.from_array(1000 * smooth(16, 12, 8), np.eye(4), modality="CT")
    probabilities = predict_probabilities(model, volume, PLAIN).array
    label = segment(model, volume, PLAIN).array[0]
    assert np.array_equal(np.array([0, 3, 7])[probabilities.argmax(0)], label)
    np.testing.assert_allclose(probabilities, probabilities_of(model), atol=1e-6)


@pytest.mark.filterwarnings("ignore::medar.errors.RangeWarning")
@pytest.mark.parametrize("spacing", [3.0, 4.3, 0.7])
def test_label_maps_and_probabilities_reach_the_volume_border(spacing: float) -> None:
    model = make_segmenter(make_plan(mode="patch", spacing=(spacing,) * 3))
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
    volume = Volume.from_array(1000 * smooth(16, 10, 13), np.diag([1, 0.7, 1.3, 1]), modality="CT")
    assert (segment(model, volume, PLAIN).array == 3).all()
    np.testing.assert_allclose(predict_probabilities(model, volume, PLAIN).array[1], 1, atol=1e-3)


def test_probabilities_outside_the_image_are_background() -> None:
    volume = Volume.from_array(1000 * smooth(24, 12, 8), np.eye(4), modality="CT")
    probabilities = predict_probabilities(make_segmenter(), volume, PLAIN).array
    assert np.array_equal(probabilities[0, :4], np.ones((4, 12, 8)))
    assert probabilities[0, 4:20].max() < 1


def test_probabilities_that_exceed_disk_space_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 3000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Full)
    nib.save(nib.Nifti1Image(1000 * smooth(15, 9, 11), AFFINE), tmp_path / "c.nii")
    arguments = (make_segmenter(), tmp_path / "c.nii", tmp_path / "made" / "c.nii.gz", PLAIN)
    with pytest.raises(MedarError, match=r"0\.0 GiB free, 0\.0 GiB needed"):
        list(segment_files(*arguments, modality="CT", probabilities=True))
    assert not list((tmp_path / "made").iterdir())


def test_training_records_the_range_of_its_data(prepared: Path, tmp_path: Path) -> None:
    task = make_task(make_settings(), prepared)
    ranges = task.model.training_range
    assert ranges is not None
    assert ranges.spacing == ((1.0, 1.0),) * 3
    low, high = ranges.intensity[0][2]
    assert -0.2 < low < high < 0.2, "medians of noise about 0"
    task.save_model(tmp_path / "model")
    assert Segmenter.from_pretrained(tmp_path, "cpu").training_range == ranges
    with_range(task.model, None).save_pretrained(tmp_path / "old")
    assert "training_range" not in json.loads((tmp_path / "old" / "config.json").read_text())
    assert Segmenter.from_pretrained(tmp_path / "old", "cpu").training_range is None


def with_range(model: Segmenter, ranges: TrainingRange | None) -> Segmenter:
    model.training_range = ranges
    return model


def test_volumes_within_the_training_range_give_no_warning(prepared: Path) -> None:
    cases = Prepared(prepared, split="train")
    indices = list(range(len(cases)))
    ranges = TrainingRange.measure(cases, indices)
    assert TrainingRange.measure(cases, indices[:1]) != ranges
    for index in indices:
        found = out_of_range(ranges, cases.plan, (1.0, 1.0, 1.0), cases.image(cases[index]))
        assert found == []


@pytest.mark.parametrize(
    ("spacing", "scale", "offset", "message"),
    [
        (5.0, 1000, 0, "spacing 1 x 1 x 5 mm, training volumes had 1 x 1 x 1 mm"),
        (1.0, 1000, 1500, "intensities: percentile 5 is"),
        (1.0, 30, -900, "percentile 25 is"),
    ],
)
def test_volumes_outside_the_training_range_give_a_warning(
    spacing: float, scale: float, offset: float, message: str, prepared: Path, tmp_path: Path
) -> None:
    model = make_task(make_settings(), prepared).model.eval()
    array = offset + scale * smooth(16, 12, 8)
    volume = Volume.from_array(array, np.diag([1, 1, spacing, 1]), modality="CT")
    path = tmp_path / "odd.nii"
    write_nifti(path, volume)
    with pytest.warns(RangeWarning, match=f"odd.nii: .*{message}"):
        list(segment_files(model, path, tmp_path / "out.nii.gz", PLAIN))
    [note] = json.loads((tmp_path / "out.json").read_text())["notes"]
    assert message in note


def test_without_a_training_range_the_plan_spacing_is_compared(tmp_path: Path) -> None:
    model = make_segmenter()
    usual = Volume.from_array(5000 * smooth(16, 12, 8), np.diag([1, 1, 1.9, 1]), modality="CT")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert predict(model, usual, PLAIN).notes == ()
    coarse = replace(usual, affine=np.diag([1.0, 1.0, 5.0, 1.0]))
    with pytest.warns(RangeWarning, match="5 mm, the plan has 1 x 1 x 1 mm"):
        assert len(predict(model, coarse, PLAIN).notes) == 1
