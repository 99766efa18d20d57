"""Phantoms: determinism, anatomy on the correct side, tissue values, geometry of the files."""

import csv
import filecmp
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from medar.data.phantoms import (
    LABELS,
    Phantom,
    draw_anatomy,
    make_paired_phantoms,
    make_phantom,
    render,
    write_phantoms,
)
from medar.data.phantoms.anatomy import Anatomy, Lesion
from medar.data.phantoms.scanners import (
    CONTRASTS,
    ORIENTATIONS,
    bias_field,
    ct_image,
    mr_image,
    signals,
    stored_as,
)
from medar.errors import MedarError
from medar.files import file_digest
from medar.volume import Grid, description_of, read_volume
from medar.volume.marks import PHANTOM

SPACING = 12.0
VALUES = {name: value for value, name in LABELS.items()}
FINE = Grid(
    shape=(80, 60, 80),
    affine=np.array([[5, 0, 0, -200], [0, 5, 0, -150], [0, 0, 5, -205], [0, 0, 0, 1.0]]),
)


@cache
def phantom(k: int, modality: str = "ct") -> Phantom:
    return make_phantom(k, modality=modality, spacing=SPACING)  # type: ignore[arg-type]


@cache
def plain() -> tuple[np.ndarray, np.ndarray]:
    """The reference anatomy at 5 mm: labels, and a native CT of it."""
    anatomy = Anatomy()
    rendering = render(anatomy, FINE)
    return rendering.labels, ct_image(rendering, anatomy, "native", rng(0))


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def centre(labels: np.ndarray, affine: np.ndarray, name: str) -> np.ndarray:
    """The centre of a label in RAS+ mm."""
    index = np.argwhere(labels == VALUES[name]).mean(axis=0)
    return affine[:3, :3] @ index + affine[:3, 3]


def core(labels: np.ndarray, name: str, depth: int = 1) -> np.ndarray:
    return ndimage.binary_erosion(labels == VALUES[name], iterations=depth)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "ct"
    write_phantoms(folder, n=9, spacing=SPACING)
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "attributes.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_same_seed_gives_same_bytes(tmp_path: Path, modality: str) -> None:
    for name in ("a", "b"):
        write_phantoms(tmp_path / name, n=3, modality=modality, seed=5, spacing=SPACING)  # type: ignore[arg-type]
    files = sorted(
        p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()
    )
    assert len(files) == 8
    same, *others = filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", files, shallow=False)
    assert len(same) == 8, others


def test_phantoms_say_what_they_are(dataset: Path) -> None:
    files = [*(dataset / "imagesTr").iterdir(), *(dataset / "labelsTr").iterdir()]
    assert {description_of(path) for path in files} == {PHANTOM}
    assert PHANTOM.startswith("synthetic phantom, medar ")


def test_volumes_do_not_depend_on_their_number(dataset: Path, tmp_path: Path) -> None:
    write_phantoms(tmp_path, n=2, spacing=SPACING)
    for kind in ("imagesTr", "labelsTr"):
        for path in (tmp_path / kind).iterdir():
            assert file_digest(path) == file_digest(dataset / kind / path.name)


def test_seeds_give_other_subjects() -> None:
    ages = {make_phantom(0, seed=seed, spacing=20.0).anatomy.age for seed in range(3)}
    assert len(ages) == 3


def test_description_follows_the_decathlon(dataset: Path) -> None:
    described = json.loads((dataset / "dataset.json").read_text())
    assert described["labels"] == {"0": "background", **{str(v): n for v, n in LABELS.items()}}
    assert described["modality"] == {"0": "CT"}
    assert described["numTraining"] == len(described["training"]) == 9
    for entry in described["training"]:
        assert (dataset / entry["image"]).is_file()
        assert (dataset / entry["label"]).is_file()


def test_files_are_read_back_unchanged(dataset: Path) -> None:
    for k, row in enumerate(rows(dataset)):
        made = phantom(k)
        image = read_volume(dataset / "imagesTr" / f"{row['id']}.nii.gz")
        label = read_volume(dataset / "labelsTr" / f"{row['id']}.nii.gz", labels=True)
        assert image.grid.matches(made.image.grid, tolerance=1e-3)
        assert label.grid.matches(image.grid, tolerance=1e-6)
        assert label.array.dtype == np.uint8
        np.testing.assert_array_equal(image.array, made.image.array)
        np.testing.assert_array_equal(label.array, made.label.array)


def test_spacing_and_orientation_vary(dataset: Path) -> None:
    grids = [phantom(k).image.provenance.grid for k in range(9)]  # type: ignore[union-attr]
    assert len({grid.orientation for grid in grids}) > 2
    assert {grid.orientation for grid in grids} <= set(ORIENTATIONS)
    assert len({grid.spacing for grid in grids}) == 9
    assert all(0.7 * SPACING < s < 1.6 * SPACING for grid in grids for s in grid.spacing)
    straight = [np.count_nonzero(np.abs(grid.affine[:3, :3]) > 1e-6) == 3 for grid in grids]
    assert any(straight)
    assert not all(straight)


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_the_stored_orientation_does_not_move_voxels(code: str) -> None:
    stored = stored_as(FINE, code)
    assert stored.orientation == code
    assert stored.to_ras().matches(FINE, tolerance=1e-6)


def test_a_subject_scanned_twice_keeps_its_anatomy_and_split() -> None:
    first, second = phantom(7), phantom(8)
    assert (first.subject, second.id) == (second.subject, f"{first.id}_b")
    assert first.anatomy == second.anatomy
    assert first.split == second.split
    assert not first.image.grid.matches(second.image.grid)
    assert {phantom(k).split for k in range(9)} == {"train", "val", "test"}


def test_all_labels_are_present_in_most_volumes() -> None:
    found = [set(np.unique(phantom(k).label.array)) for k in range(9)]
    for value in range(1, 10):
        assert sum(value in labels for labels in found) >= 8, LABELS[value]


@pytest.mark.parametrize("k", range(4))
def test_organs_are_on_the_correct_side(k: int) -> None:
    label = phantom(k).label
    at = {name: centre(label.array[0], label.affine, name) for name in VALUES if name != "lesion"}
    for organ in ("lung", "kidney"):
        assert at[f"{organ}_right"][0] > at["heart"][0] + 10 > at[f"{organ}_left"][0] + 10
    assert at["liver"][0] > 10 + at["aorta"][0]
    assert at["spleen"][0] < at["aorta"][0] - 30
    assert at["heart"][1] > at["aorta"][1]
    assert at["lung_left"][2] > at["liver"][2] > at["kidney_left"][2]


def test_hounsfield_units_of_tissues() -> None:
    labels, image = plain()
    expected = {"liver": (45, 70), "spleen": (35, 60), "heart": (35, 55), "lung_left": (-900, -730)}
    for name, (low, high) in expected.items():
        assert low < np.median(image[core(labels, name)]) < high, name
    assert np.median(image[labels == VALUES["bone"]]) > 150
    corner = image[:4, :4]
    assert -1024 <= corner.min() < corner.mean() < -980
    assert image.min() >= -1024
    np.testing.assert_array_equal(image, np.rint(image))


def test_the_contrast_agent_reaches_the_aorta_first_and_the_liver_later() -> None:
    labels, native = plain()
    anatomy = Anatomy()
    rendering = render(anatomy, FINE)
    arterial = ct_image(rendering, anatomy, "arterial", rng(1))
    venous = ct_image(rendering, anatomy, "venous", rng(1))
    aorta, organ = core(labels, "aorta"), core(labels, "liver")
    assert native[aorta].mean() + 60 < venous[aorta].mean() + 60 < arterial[aorta].mean()
    assert native[organ].mean() < arterial[organ].mean() < venous[organ].mean() - 15


def test_partial_volume_is_between_its_tissues() -> None:
    labels, image = plain()
    lung = labels == VALUES["lung_right"]
    edge = ndimage.binary_dilation(lung) & ~lung
    assert -800 < image[edge].mean() < 0


def test_mr_contrasts_order_tissues() -> None:
    t1, t2, pd = (signals(contrast) for contrast in CONTRASTS)
    assert t1["fat"] > t1["liver"] > t1["muscle"] > t1["csf"] > t1["lung"]
    assert t2["csf"] > t2["fat"] > t2["liver"] > t2["muscle"]
    assert t2["spleen"] > t2["liver"]
    assert t2["lesion_liver"] > 1.5 * t2["liver"]
    assert pd["fat"] / pd["muscle"] < t1["fat"] / t1["muscle"]


def test_mr_images_show_that_order_in_arbitrary_units() -> None:
    labels, _ = plain()
    rendering = render(Anatomy(), FINE)
    scales = []
    for seed, contrast in enumerate(CONTRASTS):
        image = mr_image(rendering, contrast, rng(seed))
        assert image.min() >= 0
        liver, spleen = (np.median(image[core(labels, name)]) for name in ("liver", "spleen"))
        assert (liver > spleen) == (contrast == "T1w")
        assert liver > 3 * np.median(image[core(labels, "lung_left")])
        scales.append(liver)
    assert max(scales) > 1.3 * min(scales)


def test_noise_of_air_is_rayleigh_in_mr() -> None:
    image = mr_image(render(Anatomy(), FINE), "PDw", rng(3))
    air = image[:6, :6]
    assert air.mean() / air.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.1)


def test_bias_field_is_smooth_and_positive() -> None:
    field = bias_field(rng(0), (30, 20, 25))
    assert field.min() > 0
    assert field.max() / field.min() > 1.1
    assert max(float(np.abs(np.diff(np.log(field), axis=a)).max()) for a in range(3)) < 0.1


@pytest.mark.parametrize("site", ["liver", "kidney", "lung"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_lesion_matches_its_attributes(site: str, side: str) -> None:
    radius = 15.0
    lesion = Lesion(site=site, side=side, radius=radius, seed=4)  # type: ignore[arg-type]
    labels = render(Anatomy(lesion=lesion), FINE).labels
    mask = labels == VALUES["lesion"]
    volume = mask.sum() * 5.0**3
    assert volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.2)
    rim = ndimage.binary_dilation(mask, iterations=2) & ~mask
    organ = site if site == "liver" else f"{site}_{side}"
    around = np.bincount(labels[rim], minlength=11)[1:]
    assert around.argmax() + 1 == VALUES[organ], around


def test_the_lesion_label_matches_the_attribute() -> None:
    classes = set()
    for k in range(9):
        made = phantom(k)
        has = bool((made.label.array == VALUES["lesion"]).any())
        assert has == (made.row["lesion"] != "none") == (made.row["lesion_diameter"] != "0.0")
        classes.add(made.row["lesion"])
    assert len(classes) > 2


def test_attributes_change_the_anatomy() -> None:
    old, young, heavy = Anatomy(age=85.0), Anatomy(age=25.0), Anatomy(bmi=34.0)
    images = {}
    for name, anatomy in (("old", old), ("young", young), ("heavy", heavy)):
        rendering = render(anatomy, FINE)
        images[name] = (rendering.labels, ct_image(rendering, anatomy, "native", rng(0)))

    def size(name: str, organ: str) -> int:
        return int((images[name][0] == VALUES[organ]).sum())

    def body(name: str) -> int:
        return int((images[name][1] > -300).sum())

    assert size("old", "aorta") > 1.1 * size("young", "aorta")
    assert size("old", "kidney_left") < size("young", "kidney_left")
    bone = {n: images[n][1][images[n][0] == VALUES["bone"]].mean() for n in ("old", "young")}
    assert bone["old"] < bone["young"] - 80
    assert body("heavy") > 1.15 * body("young")


def test_anatomies_are_within_their_bounds() -> None:
    drawn = [draw_anatomy(rng(seed)) for seed in range(60)]
    assert {a.sex for a in drawn} == {"F", "M"}
    assert {a.lesion.site for a in drawn} == {"none", "liver", "kidney", "lung"}
    assert all(20 <= a.age <= 85 and 17 <= a.bmi <= 36 and 148 <= a.height <= 198 for a in drawn)
    assert np.std([a.age for a in drawn]) > 12


def test_a_new_set_replaces_an_old_one(tmp_path: Path) -> None:
    write_phantoms(tmp_path, n=3, spacing=20.0)
    write_phantoms(tmp_path, n=1, seed=1, spacing=20.0)
    assert [p.name for p in (tmp_path / "imagesTr").iterdir()] == ["phantom_0000.nii.gz"]
    assert len(rows(tmp_path)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"modality": "pet"}, "modality must be ct or mr, got 'pet'"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"spacing": 0.1}, "spacing must be 2 to 20 mm, got 0.1"),
    ],
)
def test_invalid_settings_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(MedarError, match=re.escape(message)):
        write_phantoms(tmp_path / "out", **change)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["notes.txt", "imagesTr/patient_1.nii.gz", "phantom_0000.nii.gz"])
def test_a_folder_with_other_files_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(MedarError, match="not part of a phantom data set"):
        write_phantoms(tmp_path, n=1, spacing=20.0)
    assert (tmp_path / name).read_text() == "mine"


def test_another_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"name": "Hippocampus"}')
    with pytest.raises(MedarError, match="holds the data set 'Hippocampus'"):
        write_phantoms(tmp_path, n=1, spacing=20.0)


def test_paired_phantoms_show_the_same_anatomy_in_different_contrasts() -> None:
    made = make_paired_phantoms(1, spacing=SPACING)
    ct = made["ct"]
    assert [one.contrast for one in made.values()] == ["native", "T1w", "T2w", "PDw"]
    for one in made.values():
        assert (one.id, one.subject, one.split) == (ct.id, ct.subject, ct.split)
        assert one.image.provenance.grid.matches(ct.image.provenance.grid)  # type: ignore[union-attr]
        np.testing.assert_array_equal(one.image.affine, ct.image.affine)
        np.testing.assert_array_equal(one.label.array, ct.label.array)
    # Where CT is air, spin echo has no signal; their tissues differ from contrast to contrast.
    air = ct.image.array < -950
    for name in ("t1w", "t2w", "pdw"):
        image = made[name].image.array
        assert image[air].mean() < 0.2 * image[~air].mean()
    ratio = [made[n].image.array[~air] / made[n].image.array.mean() for n in ("t1w", "t2w")]
    assert np.corrcoef(*ratio)[0, 1] < 0.9


def test_paired_phantoms_do_not_depend_on_their_number_and_follow_the_seed() -> None:
    first, again, other = (make_paired_phantoms(2, seed=s, spacing=20) for s in (3, 3, 4))
    for name, one in first.items():
        np.testing.assert_array_equal(one.image.array, again[name].image.array)
    assert first["ct"].anatomy != other["ct"].anatomy
    assert make_phantom(2, seed=3, spacing=20).anatomy == first["ct"].anatomy
