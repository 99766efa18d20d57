"""Volumes through a tokenizer: geometry is preserved, windows are blended."""

from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from medar.data.plan import Window
from medar.data.preparation import prepare_image
from medar.data.reading import read_for_plan
from medar.errors import MedarError
from medar.tokenizer.inference import field_of_view, psnr_within
from medar.tokenizer.network import Decoded
from medar.tokenizer.tokenizer import Tokenizer
from medar.volume import ReadOptions, Volume, write_nifti

MakeTokenizer = Callable[..., Tokenizer]
Write = Callable[..., Path]


def file_on(tmp_path: Path, affine: Any, shape: tuple[int, int, int]) -> Path:
    """A NIfTI file stored on a grid, smooth so that interpolation errors are small."""
    axes = np.meshgrid(*(np.linspace(0, 2, n) for n in shape), indexing="ij")
    voxels = (300 * np.sin(axes[0] + 1.3 * axes[1] - 0.7 * axes[2])).astype(np.float32)
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, 1)
    nib.save(image, tmp_path / "in.nii")
    return tmp_path / "in.nii"


def perfect(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    """Make a tokenizer decode to exactly the volume it encoded."""
    seen: list[torch.Tensor] = []
    encode = tokenizer.encode

    def remember(volumes: torch.Tensor) -> Any:
        seen.append(volumes.clone())
        return encode(volumes)

    def repeat(_: Any) -> Decoded:
        return Decoded(seen[-1], None)

    monkeypatch.setattr(tokenizer, "encode", remember)
    monkeypatch.setattr(tokenizer.decoder, "forward", repeat)


def grids() -> list[Any]:
    """The affines of the 48 ways to store a volume, and of three oblique grids."""
    found = []
    for axes, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = (np.diag([1.0, 1.2, 0.8]) * signs)[list(axes)]
        affine[:3, 3] = 10, -20, 5
        code = "".join(nib.aff2axcodes(affine))
        found.append(pytest.param(affine, id=code))
    for angle in (10, 30, 50):
        turn = nib.eulerangles.euler2mat(*np.radians([angle, angle / 2, -angle]))
        affine = nib.affines.from_matvec(turn @ np.diag([1.0, 1.2, -0.8]), [5, -7, 3])
        found.append(pytest.param(affine, id=f"oblique{angle}"))
    return found


@pytest.mark.parametrize("affine", grids())
def test_every_grid_is_restored(
    affine: Any, tmp_path: Path, make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer(spacing=(1.1, 1.1, 1.1))
    path = file_on(tmp_path, affine, (9, 8, 12))
    perfect(monkeypatch, tokenizer)
    volume = read_for_plan(tokenizer.require_plan(), path)
    made = tokenizer.reconstruct(volume)
    write_nifti(tmp_path / "out.nii", made.image, grid="source")
    before, after = nib.load(path), nib.load(tmp_path / "out.nii")
    assert after.shape == before.shape
    assert np.allclose(after.affine, before.affine, atol=1e-5)
    inside = field_of_view(prepare_image(volume, tokenizer.require_plan())[1])
    assert 0 < made.outside == 1 - inside.mean() < 0.6
    stored = nib.load(tmp_path / "out.nii").get_fdata()
    close = np.abs(stored - before.get_fdata()) < 40  # of a range of 600, resampled twice
    assert close.mean() > 0.9 * inside.mean()
    assert made.psnr > 30


def test_decoding_a_planned_volume_equals_the_network_output(
    make_tokenizer: MakeTokenizer, write: Write
) -> None:
    tokenizer = make_tokenizer()
    volume = read_for_plan(tokenizer.require_plan(), write("in.nii"))
    made = tokenizer.reconstruct(volume, precision="fp32")
    array = torch.from_numpy(prepare_image(volume, tokenizer.require_plan())[0].copy())[None]
    expected = tokenizer.decode(tokenizer.encode(array)).volume[0].numpy() * 1000
    assert np.allclose(made.image.array, expected, atol=0.1)
    assert made.outside == 0
    error = (np.clip(expected, -1000, 1000) - volume.array) / 1000
    assert made.psnr == pytest.approx(10 * np.log10(4 / np.square(error).mean()), abs=1e-3)
    again = tokenizer.reconstruct(volume, 3, precision="fp32")
    assert np.array_equal(again.image.array, made.image.array)
    half = tokenizer.reconstruct(volume, precision="bf16").image.array
    assert 0 < np.abs(half - made.image.array).max() < 0.02 * 1000
    assert not np.array_equal(tokenizer.reconstruct(volume, 1).image.array, made.image.array)
    with pytest.raises(MedarError, match="upto must be from 1 to 3, got 0"):
        tokenizer.reconstruct(volume, 0)


def test_outside_the_field_of_view_is_the_lowest_intensity(
    make_tokenizer: MakeTokenizer, write: Write
) -> None:
    tokenizer = make_tokenizer()
    volume = read_for_plan(tokenizer.require_plan(), write("in.nii", (16, 8, 8)))
    made = tokenizer.reconstruct(volume)
    assert made.outside == 0.5
    assert (made.image.array[:, :4] == -1000).all()
    assert (made.image.array[:, 12:] == -1000).all()
    assert (made.image.array[:, 4:12] != -1000).all()


@pytest.mark.parametrize("shape", [(8, 8, 8), (13, 9, 20), (5, 8, 6)], ids=str)
def test_patches_cover_the_whole_volume(
    shape: Any, make_tokenizer: MakeTokenizer, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer(mode="patch", labels={3: "a", 7: "b"})
    volume = read_for_plan(tokenizer.require_plan(), write("in.nii", shape))
    made = tokenizer.reconstruct(volume)
    assert made.image.shape == shape
    assert made.outside == 0
    assert made.label is not None
    assert made.label.shape == shape
    assert set(np.unique(made.label.array)) <= {0, 3, 7}
    perfect(monkeypatch, tokenizer)
    assert np.allclose(tokenizer.reconstruct(volume).image.array, volume.array, atol=0.1)


def test_label_maps_contain_the_plan_values(make_tokenizer: MakeTokenizer, write: Write) -> None:
    tokenizer = make_tokenizer(labels={3: "a", 7: "b"})
    volume = read_for_plan(tokenizer.require_plan(), write("in.nii"))
    made = tokenizer.reconstruct(volume, precision="fp32")
    array = torch.from_numpy(prepare_image(volume, tokenizer.require_plan())[0].copy())[None]
    logits = tokenizer.decode(tokenizer.encode(array)).logits
    assert logits is not None
    assert made.label is not None
    expected = np.array([0, 3, 7])[logits[0].argmax(0).numpy()]
    assert len(np.unique(expected)) > 1
    assert np.array_equal(made.label.array[0], expected)


def test_psnr_uses_values_inside_the_window() -> None:
    def volume(value: float) -> Volume:
        array = np.full((1, 2, 2, 2), value, np.float32)
        array[0, 0] = 0
        return Volume.from_array(array, np.eye(4))

    inside = np.zeros((2, 2, 2), bool)
    inside[1] = True
    window = (Window(low=-100, high=100),)
    assert psnr_within(inside, volume(50), volume(30), window) == pytest.approx(20.0, abs=1e-3)
    assert psnr_within(inside, volume(500), volume(300), window) == np.inf
    assert psnr_within(~inside, volume(50), volume(30), window) == np.inf


def test_a_file_is_read_according_to_the_plan(
    make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    voxels = np.full((8, 8, 8), np.nan, np.float32)
    voxels[:4] = 7
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "nan.nii")
    careless = make_tokenizer(reading=ReadOptions(nonfinite="min")).require_plan()
    assert (read_for_plan(careless, tmp_path / "nan.nii").array == 7).all()
    other = read_for_plan(careless, tmp_path / "nan.nii", ReadOptions(nonfinite=-5.0))
    assert other.array.min() == -5
    assert other.modality == "CT"  # the only one that the plan knows
    with pytest.raises(MedarError, match=r"nan\.nii"):
        read_for_plan(make_tokenizer().require_plan(), tmp_path / "nan.nii")
    with pytest.raises(MedarError, match=r"nonfinite .*must be"):
        read_for_plan(careless, tmp_path / "nan.nii", ReadOptions(nonfinite="keep"))


def test_a_tokenizer_without_a_matching_plan_is_refused(
    make_tokenizer: MakeTokenizer,
) -> None:
    tokenizer = make_tokenizer(labels={1: "a"})
    tokenizer.plan = make_tokenizer(labels={1: "a", 2: "b"}).plan
    with pytest.raises(MedarError, match="1 channels and 1 labels, its plan 1 and 2"):
        tokenizer.require_plan()
    tokenizer.plan = None
    with pytest.raises(MedarError, match="has no plan"):
        tokenizer.require_plan()
