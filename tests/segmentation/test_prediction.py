"""Prediction: on the grid of the volume, in any orientation, by slabs, mirrors and channels."""

import json
from collections.abc import Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from small_segmenters import make_plan, make_segmenter, smooth
from torch import Tensor

from medar.data.plan import IntensityRule, Plan
from medar.devices import InferencePrecision
from medar.errors import MedarError, RangeWarning
from medar.segmentation import blending, sliding_window
from medar.segmentation.blending import class_probabilities, first_largest
from medar.segmentation.files import segment_files
from medar.segmentation.prediction import image_tensor, segment
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.sliding_window import (
    PredictionSettings,
    mirror_average,
    predict_classes,
    predict_rows,
    slabs,
    swapped_classes,
)
from medar.settings import from_dict, to_dict
from medar.volume import ReadOptions, Volume, read_volume
from medar.volume.geometry import reorient

ORIENTATIONS = [
    "".join(letters[axis][side] for axis, side in zip(order, sides, strict=True))
    for letters in (("RL", "AP", "SI"),)
    for order in permutations(range(3))
    for sides in product((0, 1), repeat=3)
]
PLAIN = PredictionSettings(mirrors=())


class Bright(torch.nn.Module):
    """Segments bright voxels as class 1."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.plan, self.mirrors, self.training_range = make_plan(**changes), (), None
        self.at = torch.nn.Parameter(torch.tensor(0.2))

    def forward(self, volumes: Tensor) -> Tensor:
        apart = 9 * (volumes - self.at)
        return torch.cat([-apart, apart, torch.full_like(apart, -99.0)], dim=1)


def test_every_orientation_gives_the_same_segmentation(tmp_path: Path) -> None:
    assert len(set(ORIENTATIONS)) == 48
    model = make_segmenter(make_plan(spacing=(1.0, 1.0, 1.5)))
    affine = np.array([[1.0, 0.1, 0, 4], [-0.1, 1.0, 0, 5], [0, 0, 2, 6], [0, 0, 0, 1]])
    array = 1000 * smooth(15, 12, 6)
    volume = Volume.from_array(array, affine, modality="CT")
    expected = segment(model, volume, PLAIN)
    assert len(np.unique(expected.array)) > 1
    for code in ORIENTATIONS:
        turned = reorient(volume.array, volume.affine, code)
        moved = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
        target = nib.orientations.axcodes2ornt(tuple(code))
        path, out = tmp_path / f"{code}.nii.gz", tmp_path / f"{code}_labels.nii.gz"
        image = moved.as_reoriented(
            nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), target)
        )
        assert np.array_equal(image.get_fdata(dtype=np.float32), turned[0])
        nib.save(image, path)
        [(_, made)] = segment_files(model, path, out, PLAIN, modality="CT")
        stored = nib.load(made)
        assert stored.shape == image.shape
        np.testing.assert_allclose(stored.affine, image.affine, atol=1e-5)
        assert np.array_equal(read_volume(made, labels=True).array, expected.array), code


def test_labels_have_the_plan_values_on_the_volume_grid() -> None:
    array = 1000 * smooth(20, 12, 8)
    volume = Volume.from_array(array, np.eye(4), modality="CT")
    model: Any = Bright()
    label = segment(model, volume, PLAIN)
    assert label.shape == volume.shape
    assert set(np.unique(label.array)) == {0, 3}
    inside = label.array[0, 2:18]
    assert np.array_equal(inside == 3, array[2:18] > 200), "the plan's 16 voxels are seen"
    assert not label.array[0, :2].any()
    assert not label.array[0, 18:].any()


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
@pytest.mark.parametrize("sides", [(61, 9, 8), (9, 8, 30), (5, 23, 7), (3, 4, 5)], ids=str)
def test_blending_equals_that_of_monai(
    sides: tuple[int, int, int], overlap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blending, "PART", 7 * 9 * 3)  # a few rows at once
    model = make_segmenter(make_plan(mode="patch", size=(8, 8, 8)))
    image = torch.from_numpy(smooth(*sides))[None]
    settings = PredictionSettings(overlap=overlap, mirrors=(), batch_size=3, precision="fp32")
    with torch.no_grad():
        expected = sliding_window_inference(
            image[None], (8, 8, 8), 1, lambda x: model(x).softmax(1), overlap, "gaussian", cval=-1.0
        )
    assert isinstance(expected, Tensor)
    found, classes = torch.full_like(expected, -1), torch.full((1, *sides), -1)
    for box, blended in predict_rows(model, image, settings):
        found[:, :, *box[1:]], classes[box] = blended.probabilities, blended.classes.long()
    torch.testing.assert_close(found, expected)
    assert torch.equal(classes, found.argmax(1))


def test_windows_are_blended_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the network's device, or on the CPU if its memory does not suffice."""
    card, sides = torch.device("cuda"), (20, 14, 9)
    needed = 4 * 20 * 14 * 9 * 4 + 16 * blending.PART
    for memory, expected in ((needed, card), (needed - 1, torch.device("cpu"))):
        monkeypatch.setattr(sliding_window, "memory_budget", lambda device, m=memory: m)
        assert sliding_window._blending_device(card, sides, 3) == expected


def test_memory_does_not_grow_with_the_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = make_segmenter(make_plan(mode="patch", size=(8, 8, 8))), []
    blend = sliding_window.blend

    def noted(*given: Any, **options: Any) -> Any:
        for part in blend(*given, **options):
            seen.append(part.sums.untyped_storage().nbytes())
            yield part

    monkeypatch.setattr(sliding_window, "blend", noted)
    for side in (20, 90):
        predict_classes(model, torch.from_numpy(smooth(9, side, 8))[None], PLAIN)
    assert set(seen) == {3 * 9 * 8 * 8 * 4}


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.6])
def test_slabs_equal_the_whole_volume(overlap: float) -> None:
    plan = make_plan(mode="patch", size=(8, 8, 8))
    model = make_segmenter(plan)
    image = torch.from_numpy(smooth(8, 61, 70))[None]
    whole = predict_classes(model, image, PredictionSettings(overlap=overlap, mirrors=()))
    small = PredictionSettings(overlap=overlap, mirrors=(), memory_gib=2e-5)
    parts = list(slabs((8, 61, 8), plan.size, 1, small, 3))
    assert len(parts) > 2
    assert [part.low for part in parts[1:]] == [part.high for part in parts[:-1]]
    assert max(part.stop - part.start for part in parts) < 61
    assert torch.equal(predict_classes(model, image, small), whole)
    assert len(torch.unique(whole)) > 1


def test_precision_of_the_network(tmp_path: Path) -> None:
    model, image = make_segmenter(make_plan()), torch.from_numpy(smooth(20, 14, 9))[None]
    found: dict[str, Tensor] = {}
    precisions: tuple[InferencePrecision, ...] = ("fp32", "bf16")
    for precision in precisions:
        settings = PredictionSettings.from_options("none", precision=precision)
        parts = [part.probabilities for _, part in predict_rows(model, image, settings)]
        found[precision] = torch.cat(parts, 2)
    exact, half = found["fp32"], found["bf16"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.sum(1), torch.ones_like(half.sum(1)))
    assert 0 < (half - exact).abs().max() < 0.05
    volume = tmp_path / "image.nii"
    nib.save(nib.Nifti1Image(1000 * smooth(20, 14, 9), np.eye(4)), volume)
    list(segment_files(model, volume, tmp_path / "label.nii", settings, modality="CT"))
    assert json.loads((tmp_path / "label.json").read_text())["precision"] == "bf16"


@pytest.mark.parametrize("sides", [(13, 8, 8), (13, 16, 12), (13, 7, 9)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_few_planes_at_a_time_equal_all_of_them(
    dtype: torch.dtype, sides: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    logits = 5 * torch.randn(2, 5, *sides).to(dtype)
    expected, plane = logits.float().softmax(1), sides[1] * sides[2]
    for count, parts in ((1, 13), (2 * 5 * plane * 3, 5), (1 << 20, 1)):
        monkeypatch.setattr(blending, "CACHED", count)
        found = list(class_probabilities(logits))
        assert len(found) == parts
        assert [n for planes, _ in found for n in range(13)[planes]] == list(range(13))
        made = torch.cat([part for _, part in found], 2)
        # torch rounds differently in what a plane has beyond whole vectors.
        torch.testing.assert_close(made, expected, rtol=4e-7, atol=0)
        assert plane % 64 or torch.equal(made, expected)


def test_the_first_of_the_largest_is_chosen() -> None:
    torch.manual_seed(0)
    for count in (1, 2, 9, 300):
        few = torch.randint(0, 4, (count, 6, 11, 5)).float()  # many are equal
        for values in (few, torch.rand(count, 6, 11, 5), torch.zeros(count, 6, 11, 5)):
            given = values.clone()
            assert np.array_equal(first_largest(values), values.numpy().argmax(0))
            assert torch.equal(values, given)


@pytest.mark.parametrize("size", [(8, 32, 32), (8, 8, 8), (6, 10, 12)], ids=str)
@pytest.mark.parametrize("mirrors", [(), ("x", "y", "z")])
def test_prediction_does_not_depend_on_the_planes_at_a_time(
    mirrors: tuple[Any, ...], size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(
        mode="patch", size=size, downsampling=(2, 2, 2), labels={3: "left lung", 7: "right lung"}
    )
    model, image = make_segmenter(plan), torch.from_numpy(smooth(17, 35, 41))[None]
    settings = PredictionSettings(mirrors=mirrors, batch_size=2)
    found = []
    for count in (1, 2 * 3 * size[1] * size[2] * 3, 1 << 20):
        monkeypatch.setattr(blending, "CACHED", count)
        rows = []
        for _, part in predict_rows(model, image, settings):
            assert torch.equal(part.classes, part.sums.max(1).indices.to(torch.int16))
            rows.append(part.sums.clone())
        found.append(torch.cat(rows, 4))
    for few in found[:2]:
        # torch rounds differently in what a row has beyond whole vectors.
        torch.testing.assert_close(few, found[2], rtol=2e-6, atol=1e-8)
        assert size[2] % 32 or torch.equal(few, found[2])


def test_a_slab_sees_every_window_that_reaches_into_it() -> None:
    for size, wide, overlap in product((17, 40, 41, 63), (8, 9), (0.0, 0.3, 0.5)):
        settings = PredictionSettings(overlap=overlap, memory_gib=1e-9)
        step = max(1, int(wide * (1 - overlap)))
        indices = windows(size, wide, step)
        for part in slabs((size, 4, 4), (wide, 4, 4), 0, settings, 3):
            actual = [part.start + at for at in windows(part.stop - part.start, wide, step)]
            needed = [at for at in indices if at < part.high and at + wide > part.low]
            assert set(needed) <= set(actual) <= set(indices)


def windows(size: int, wide: int, step: int) -> list[int]:
    """The start positions of MONAI's windows along an axis."""
    count = next(n for n in range(size) if n * step + wide >= size) + 1
    return [min(n * step, size - wide) for n in range(count)]


def test_volumes_smaller_than_a_window() -> None:
    model: Any = Bright(mode="patch")
    array = smooth(5, 7, 3)
    found = predict_classes(model, torch.from_numpy(array)[None], PLAIN)
    assert np.array_equal(found[0].numpy() == 1, array > 0.2)


def mirrored(tensor: Tensor, axes: Sequence[int]) -> Tensor:
    return tensor.flip([2 + axis for axis in axes])


def test_mirrors_are_mirrored_back() -> None:
    labels = {3: "left lung", 7: "right lung"}
    model = make_segmenter(make_plan(labels=labels))
    swapped = swapped_classes(labels)
    assert swapped == [0, 2, 1]
    batch = torch.from_numpy(smooth(16, 12, 8))[None, None]
    with torch.no_grad():
        mean = mirror_average(model, batch, ("x", "z"), swapped)
        again = mirror_average(model, mirrored(batch, [0]), ("x", "z"), swapped)
        plain = mirror_average(model, batch, (), [])
        torch.testing.assert_close(plain, model(batch).softmax(1))
    torch.testing.assert_close(mirrored(again, [0])[:, swapped], mean)
    torch.testing.assert_close(mean.sum(1), torch.ones_like(mean[:, 0]))
    assert not torch.allclose(mean, plain)


def test_mirrors_default_to_those_of_the_model() -> None:
    image = torch.from_numpy(smooth(16, 12, 8))[None]
    model = make_segmenter(mirrors=("y",))
    own = predict_classes(model, image)
    assert torch.equal(own, predict_classes(model, image, PredictionSettings(mirrors=("y",))))
    assert not torch.equal(own, predict_classes(model, image, PLAIN))


def test_settings_are_parsed_from_strings() -> None:
    assert PredictionSettings.from_options(None, 0.5).mirrors is None
    assert PredictionSettings.from_options("none", 0.5).mirrors == ()
    assert PredictionSettings.from_options("zx", 0.5).mirrors == ("x", "z")
    for mirrors, overlap, message in (
        ("xw", 0.5, "letters xyz"),
        (None, 1.0, "overlap must be less than 1"),
    ):
        with pytest.raises(MedarError, match=message):
            PredictionSettings.from_options(mirrors, overlap)
    with pytest.raises(MedarError, match="no counterpart"):
        model = make_segmenter(make_plan(labels={1: "left lung"}))
        predict_classes(model, torch.zeros(1, 16, 12, 8), PredictionSettings(mirrors=("x",)))


AWKWARD = {
    "analyze.hdr": {},
    "analyze.img": {},
    "dicom_mr_oblique": {},
    "nan_voxels.nii": {"nonfinite": "min"},
    "no_qform_no_sform.nii.gz": {"assume_spacing": "header"},
    "oblique.nrrd": {},
    "shear_qform_ne_sform.nii.gz": {},
}
"""Files that one network can segment, and what has to be decided about them."""
REFUSED = {
    "4d_with_slope.nii": "20 volumes along a fourth axis",
    "complex64.nii.gz": "complex voxels",
    "nan_voxels.nii": "153 NaN",
    "nifti2.nii.gz": "2 volumes along a fourth axis",
    "no_qform_no_sform.nii.gz": "neither sform nor qform",
    "unreadable.mif.gz": "unknown volume format",
}


def coarse_segmenter() -> Segmenter:
    """A segmenter for any volume at 20 mm, so that real volumes are quick."""
    intensity = {"other": {"kind": "percentiles", "low": 0.5, "high": 99.5}}
    values = {**to_dict(make_plan(mode="patch", size=(8, 8, 8))), "intensity": intensity}
    return make_segmenter(from_dict(Plan, {**values, "spacing": [20.0, 20.0, 20.0]}, "plan"))


def test_every_awkward_file_is_in_a_table(shared_data: Path) -> None:
    assert {path.name for path in (shared_data / "awkward").iterdir()} == {*AWKWARD, *REFUSED}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::medar.errors.GeometryWarning")
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_files_get_labels_on_their_own_grid(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    path, options = shared_data / "awkward" / name, ReadOptions(**AWKWARD[name])  # type: ignore[arg-type]
    with pytest.warns(RangeWarning, match="spacing"):
        [(_, made)] = segment_files(
            coarse_segmenter(), path, tmp_path / "made.nii.gz", PLAIN, options=options
        )
    stored, written = read_volume(path, **options.to_dict()).provenance, nib.load(made)
    assert stored is not None
    assert written.shape == stored.grid.shape
    np.testing.assert_allclose(written.affine, stored.grid.affine, atol=1e-3)
    assert written.get_data_dtype() == np.int8


@pytest.mark.parametrize("name", REFUSED)
def test_unreadable_files_are_refused_in_one_line(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    path = shared_data / "awkward" / name
    with pytest.raises(MedarError, match=REFUSED[name]) as caught:
        list(segment_files(coarse_segmenter(), path, tmp_path / "made.nii.gz", PLAIN))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


RULE = IntensityRule(kind="window", low=-1.0, high=1.0)


@pytest.fixture
def two_channel_model() -> Segmenter:
    return make_segmenter(
        make_plan(channels=("T1", "T2"), intensity={"T1": RULE, "T2": RULE}), mirrors=()
    )


def write(path: Path, *channels: int, shift: float = 0.0) -> Path:
    """Write a volume of smooth noise; each channel has its own seed."""
    arrays = [smooth(16, 12, 8, seed=channel) for channel in channels]
    affine = np.eye(4)
    affine[0, 3] = shift
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(np.stack(arrays, -1).squeeze(), affine).to_filename(path)
    return path


def labels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_separate_channel_files_equal_one_multichannel_file(
    two_channel_model: Segmenter, tmp_path: Path
) -> None:
    first = write(tmp_path / "in" / "a_0000.nii.gz", 0)
    second = write(tmp_path / "in" / "a_0001.nii.gz", 1)
    write(tmp_path / "in" / "b.nii.gz", 0, 1)
    found = dict(segment_files(two_channel_model, tmp_path / "in", tmp_path / "out", PLAIN))
    assert list(found.values()) == [tmp_path / "out" / name for name in ("a.nii.gz", "b.nii.gz")]
    made = labels(tmp_path / "out" / "b.nii.gz")
    assert len(np.unique(made)) > 1
    assert np.array_equal(labels(tmp_path / "out" / "a.nii.gz"), made)
    for path in (first, second):
        target = tmp_path / f"{path.name[:6]}.nii.gz"
        list(segment_files(two_channel_model, path, target, PLAIN))
        assert np.array_equal(labels(target), made)


def test_channels_are_ordered_by_their_number(two_channel_model: Segmenter, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a_0001.nii.gz", 0)
    write(tmp_path / "in" / "a_0000.nii.gz", 1)
    other = write(tmp_path / "b.nii.gz", 1, 0)
    list(segment_files(two_channel_model, tmp_path / "in", tmp_path / "out", PLAIN))
    list(segment_files(two_channel_model, other, tmp_path / "other.nii.gz", PLAIN))
    assert np.array_equal(labels(tmp_path / "out" / "a.nii.gz"), labels(tmp_path / "other.nii.gz"))


def test_numbered_names_that_are_no_channels_are_volumes(
    two_channel_model: Segmenter, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        write(tmp_path / "in" / f"case_{number:04}.nii.gz", 0, 1)
    found = dict(segment_files(two_channel_model, tmp_path / "in", tmp_path / "out", PLAIN))
    assert {path.name for path in found.values() if isinstance(path, Path)} == {
        "case_0001.nii.gz", "case_0002.nii.gz", "case_0003.nii.gz"
    }  # fmt: skip


def test_a_missing_channel_and_another_grid_are_refused(
    two_channel_model: Segmenter, tmp_path: Path
) -> None:
    alone = write(tmp_path / "a_0000.nii.gz", 0)
    with pytest.raises(MedarError, match=r"1 channel; the plan has 2 \(T1, T2\); give it all"):
        list(segment_files(two_channel_model, alone, tmp_path / "out.nii.gz", PLAIN))
    write(tmp_path / "a_0001.nii.gz", 1, shift=3.0)
    with pytest.raises(MedarError, match=r"a_0001.nii.gz: its grid differs from that of a_0000"):
        list(segment_files(two_channel_model, alone, tmp_path / "out.nii.gz", PLAIN))
    assert not (tmp_path / "out.nii.gz").exists()


def test_two_volumes_with_one_name_are_refused(
    two_channel_model: Segmenter, tmp_path: Path
) -> None:
    for name, channels in (("a_0000", (0,)), ("a_0001", (1,)), ("a", (0, 1))):
        write(tmp_path / "in" / f"{name}.nii.gz", *channels)
    with pytest.raises(MedarError, match="two volumes are named 'a'; rename one of them"):
        list(segment_files(two_channel_model, tmp_path / "in", tmp_path / "out", PLAIN))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_logits_that_are_not_finite_give_no_label_map(value: float) -> None:
    model = make_segmenter()
    with torch.no_grad():
        model.head.bias[1] = value
        model.head.weight[1] = 3e38 if value == 3e38 else 0.0
    volume = Volume.from_array(1000 * smooth(15, 12, 6), np.eye(4), modality="CT")
    if value == -float("inf"):  # a probability of 0, which is finite
        assert not (segment(model, volume, PLAIN).array == 3).any()
        return
    with pytest.raises(MedarError, match=r"the class probabilities are NaN or infinite.*restore"):
        segment(model, volume, PLAIN)


def test_a_prepared_image_is_not_copied() -> None:
    array = Volume(array=smooth(4, 4, 4)[None], affine=np.eye(4)).array
    assert not array.flags.writeable
    assert image_tensor(array).data_ptr() == array.ctypes.data
    fixed = np.frombuffer(bytes(16), np.float32)
    assert torch.equal(image_tensor(fixed), torch.zeros(4))
