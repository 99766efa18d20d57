"""Synthesis: geometry, intensities, seeds, conditions, inpainting and upscaling."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from medar.data.plan import IntensityRule
from medar.devices import InferencePrecision
from medar.errors import MedarError
from medar.generator.settings import SamplingSettings
from medar.synthesis.region import Box, without
from medar.synthesis.request import Request
from medar.synthesis.synthesizer import Synthesizer, SyntheticVolume
from medar.synthesis.upscaling import agreeing, scales_given
from medar.tokenizer.inference import Array
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer
from medar.volume import Volume, resample

from .tiny import tiny_detail, tiny_model, tiny_synthesizer, tiny_tokenizer

RANGES = {"CT": 300.0, "MR": 900.0}


@pytest.fixture(scope="module")
def synthesizer() -> Synthesizer:
    """A synthesizer with attributes, maps and a label head."""
    return tiny_synthesizer()


def scan(
    shape: tuple[int, int, int] = (18, 15, 9), sides: tuple[float, ...] = (-1.0, 1.0, 2.0)
) -> Volume:
    """Integer noise on a grid whose first axis points left."""
    voxels = np.random.default_rng(0).integers(-900, 900, shape).astype(np.float32)
    affine = np.diag([*sides, 1.0])
    affine[:3, 3] = 5.0, -7.0, 3.0
    return Volume.from_array(voxels, affine, modality="CT")


def equal(first: SyntheticVolume, second: SyntheticVolume) -> bool:
    pair = first.label, second.label
    labels = all(pair) and np.array_equal(*(label.array for label in pair if label))
    return labels and np.array_equal(first.image.array, second.image.array)


def test_volumes_have_the_plan_geometry_and_intensities(synthesizer: Synthesizer) -> None:
    (sample,) = synthesizer(seed=3, class_="liver")
    image, label = sample.image, sample.label
    assert (image.shape, image.spacing, image.modality) == ((16, 16, 8), (1.0, 1.0, 2.0), "CT")
    assert np.array_equal(image.affine, np.diag([1.0, 1.0, 2.0, 1.0]))
    # Decoded volumes reach beyond the window, samples do not.
    assert synthesizer.tokenizer.decode(sample.pyramid).volume.abs().max() > 1
    assert (image.array.min(), image.array.max()) == (-100.0, 300.0)
    assert label is not None
    assert label.is_label
    assert np.array_equal(label.affine, image.affine)
    assert set(np.unique(label.array)) <= {0, 1, 4}
    about = sample.about
    assert about["synthetic"] is True
    assert (about["seed"], about["attributes"]) == (3, {"organ": "liver"})
    assert sample.pyramid.tokenizer == about["tokenizer"] == synthesizer.tokenizer.digest


def test_a_sample_depends_only_on_its_seed(synthesizer: Synthesizer) -> None:
    batch = synthesizer(3, seed=5, class_="liver", guidance_scale=1.5)
    for index, sample in enumerate(batch):
        assert equal(sample, synthesizer(seed=5 + index, class_="liver", guidance_scale=1.5)[0])
    for expected, actual in zip(
        batch, synthesizer(3, seed=5, class_="liver", guidance_scale=1.5, batch_size=2), strict=True
    ):
        assert equal(expected, actual)
        assert expected.about == actual.about
    assert not equal(batch[0], batch[1])


def test_detail_depends_only_on_the_seed_and_can_be_turned_off() -> None:
    plain = tiny_synthesizer()
    synthesizer = Synthesizer(plain.model, tiny_detail(plain.tokenizer))
    batch = synthesizer(3, seed=5, class_="liver")
    for index, sample in enumerate(batch):
        assert equal(sample, synthesizer(seed=5 + index, class_="liver", batch_size=1)[0])
    without_detail = SamplingSettings(detail="none")
    (before,) = plain(seed=5, class_="liver")
    assert equal(before, synthesizer(seed=5, class_="liver", sampling=without_detail)[0])
    assert torch.equal(before.pyramid.flatten(), batch[0].pyramid.flatten())
    assert (before.image.array != batch[0].image.array).mean() > 0.5
    assert batch[0].image.array.min() >= -100
    assert batch[0].image.array.max() <= 300
    with pytest.raises(MedarError, match="no detail decoder"):
        plain(sampling=SamplingSettings(detail=2))


def test_detail_stays_inside_the_region_and_agrees_with_the_input() -> None:
    plain = tiny_synthesizer()
    synthesizer = Synthesizer(plain.model, tiny_detail(plain.tokenizer))
    volume, region = scan(), Box.parse("5:11,4:9,3:6")
    hole = region.mask(volume.grid)
    (filled,) = synthesizer(inpaint=volume, region=region)
    (without_detail,) = plain(inpaint=volume, region=region)
    assert np.array_equal(filled.image.array[:, ~hole], volume.array[:, ~hole])
    assert (filled.image.array[:, hole] != without_detail.image.array[:, hole]).any()
    low = Volume.from_array(
        np.random.default_rng(0).uniform(0, 200, (8, 8, 4)).astype(np.float32),
        np.diag([2.0, 2.0, 4.0, 1.0]),
        modality="CT",
    )

    def error(chosen: Synthesizer) -> float:
        (sample,) = chosen(upscale=low)
        lowered = resample(sample.image, low.grid).array
        return float(np.abs(lowered - low.array)[:, 1:-1, 1:-1, 1:-1].mean())

    assert error(synthesizer) < 1.5 * error(plain) + 1


def test_guidance_0_is_the_model_itself(synthesizer: Synthesizer) -> None:
    options: dict[str, Any] = {"attributes": {"organ": "spleen", "age": 70}}
    plain = synthesizer(2, **options)
    assert all(map(equal, plain, synthesizer(2, guidance_scale=0.0, **options)))
    guided = synthesizer(2, guidance_scale=6.0, **options)
    assert not all(map(equal, plain, guided))
    assert guided[0].about["sampling"]["guidance_scale"] == 6.0
    (left_out,) = synthesizer(guidance_scale=6.0)
    assert equal(left_out, synthesizer()[0])
    assert left_out.about["notes"] == ["guidance_scale 6 is ignored: there is no condition"]


def test_settings_and_previews(synthesizer: Synthesizer) -> None:
    seen: list[tuple[int, list[Volume]]] = []
    sharp = SamplingSettings(top_k=1, precision="fp32")
    first, second = synthesizer(2, sampling=sharp, preview=lambda k, v: seen.append((k, v)))
    assert equal(first, second)
    assert [(k, len(volumes)) for k, volumes in seen] == [(1, 2), (2, 2), (3, 2)]
    assert np.array_equal(seen[-1][1][0].array, first.image.array)
    coarse = synthesizer.tokenizer.decode(first.pyramid, upto=1).volume[0].clamp(-1, 1).numpy()
    assert np.allclose(seen[0][1][0].array, coarse * 200 + 100, atol=1e-3)


def test_precision_is_recorded_as_it_was_computed(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(precision: InferencePrecision) -> SyntheticVolume:
        (made,) = synthesizer(sampling=SamplingSettings(precision=precision))
        return made

    exact, half = sample("fp32"), sample("bf16")
    assert exact.about["precision"] == {"tokens": "fp32", "decoding": "fp32"}
    assert half.about["precision"] == {"tokens": "bf16", "decoding": "bf16"}
    for native, decoding in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("medar.devices.has_bf16", lambda device, native=native: native)
        made = sample("auto")
        assert made.about["precision"] == {"tokens": "fp32", "decoding": decoding}
        assert all(map(torch.equal, made.pyramid.indices, exact.pyramid.indices))
        difference = np.abs(made.image.array - exact.image.array).mean()
        assert (0 < difference < 0.02 * 400) if native else difference == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_": "heart"}, "class 'heart': this model knows organ: liver, spleen"),
        ({"class_": "none"}, "organ and lesion have this value; name the attribute"),
        (
            {"class_": "liver", "attributes": {"organ": "spleen"}},
            "requested both as 'spleen' and 'liver'",
        ),
        ({"attributes": {"sex": "f"}}, "attribute 'sex'"),
        ({"attributes": {"age": "old"}}, "attribute 'age'"),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"batch_size": 0}, "batch size must be at least 1, got 0"),
        ({"guidance_scale": -1.0}, "guidance_scale must be at least 0"),
        ({"sampling": SamplingSettings(top_k=(1, 2))}, "top_k has 2 values"),
        ({"modality": "MR"}, "no intensity rule for 'MR'"),
        ({"known_scales": 1}, "known_scales needs upscale"),
        ({"region": Box.parse("0:1,0:1,0:1")}, "region without inpaint"),
        ({"inpaint": scan()}, "inpaint without region"),
        (
            {"inpaint": scan(), "region": Box.parse("0:1,0:1,0:1"), "upscale": scan()},
            "exclude each other",
        ),
    ],
)
def test_invalid_requests_are_refused(
    synthesizer: Synthesizer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MedarError) as error:
        synthesizer(**options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_masks_steer_samples_and_set_their_geometry(synthesizer: Synthesizer) -> None:
    values = np.zeros((1, 16, 16, 8), np.uint8)
    values[:, 2:9, 3:12, 2:6] = 4
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = -50.0, 20.0, 8.0
    mask = Volume(array=values, affine=affine)
    with_mask, without_it = synthesizer(mask=mask)[0], synthesizer()[0]
    assert np.array_equal(with_mask.image.affine, affine)
    assert not np.array_equal(with_mask.image.array, without_it.image.array)
    assert with_mask.about["mask"]["file"] == "mask"
    both = synthesizer(2, mask=mask)
    assert equal(both[0], with_mask)
    # A mask on another grid lies around its middle.
    finer = Volume(array=values.repeat(2, axis=1), affine=np.diag([0.5, 1.0, 2.0, 1.0]))
    image = synthesizer(mask=finer)[0].image
    assert (image.shape, image.spacing) == ((16, 16, 8), (1.0, 1.0, 2.0))
    assert np.allclose(image.affine[:3, 3], [0.25, 0.0, 0.0])


def test_without_a_label_head_the_mask_is_the_label() -> None:
    tokenizer = tiny_tokenizer()
    config = tokenizer.config
    headless = replace(config, network=replace(config.network, labels=0))
    tokenizer = Tokenizer(headless, tokenizer.plan).eval()
    synthesizer = Synthesizer(tiny_model(tokenizer), tokenizer)
    values = np.zeros((1, 16, 16, 8), np.uint8)
    values[:, 2:9, 3:12, 2:6] = 4
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = -50.0, 20.0, 8.0
    mask = Volume(array=values, affine=affine)
    (sample,) = synthesizer(mask=mask)
    assert sample.label is not None
    assert np.array_equal(sample.label.array, values)
    assert np.array_equal(sample.label.affine, sample.image.affine)
    assert synthesizer()[0].label is None
    # In a filled region's volume, the map is brought to that volume's own grid.
    image = scan()
    filled = synthesizer(inpaint=image, region=Box.parse("2:6,3:9,2:5"), mask=mask_of(image))[0]
    assert filled.label is not None
    assert np.array_equal(filled.label.array, mask_of(image).array)


def mask_of(image: Volume) -> Volume:
    """A block of organ 4 on the grid of an image."""
    values = np.zeros_like(image.array, dtype=np.uint8)
    values[:, 4:12, 3:12, 2:6] = 4
    return image.with_array(values)


def test_mismatched_masks_are_refused(synthesizer: Synthesizer) -> None:
    values = np.full((1, 16, 16, 8), 7, np.uint8)
    mask = Volume(array=values, affine=np.diag([1.0, 1.0, 2.0, 1.0]))
    with pytest.raises(MedarError, match="mask: label values 7 are not among the plan's 0, 1, 4"):
        synthesizer(mask=mask)
    with pytest.raises(MedarError, match="no label map"):
        synthesizer(mask=scan())
    tokenizer = tiny_tokenizer()
    blind = Synthesizer(tiny_model(tokenizer, maps=False), tokenizer)
    with pytest.raises(MedarError, match="trained without label maps"):
        blind(mask=mask.with_array(values * 0))


@pytest.mark.parametrize("mode", ["volume", "patch"])
@pytest.mark.parametrize("sides", [(-1.0, 1.0, 2.0), (-1.1, 0.9, 1.7)])
def test_inpainting_changes_only_the_region(mode: str, sides: tuple[float, ...]) -> None:
    synthesizer = tiny_synthesizer(mode=mode)
    volume = scan(sides=sides)
    region = Box.parse("5:11,4:9,3:6")
    hole = region.mask(volume.grid)
    made = synthesizer(2, inpaint=volume, region=region)
    for sample in made:
        assert np.array_equal(sample.image.affine, volume.affine)
        assert sample.image.array.dtype == volume.array.dtype
        assert np.array_equal(sample.image.array[:, ~hole], volume.array[:, ~hole])
        assert (sample.image.array[:, hole] != volume.array[:, hole]).mean() > 0.9
        assert sample.label is not None
        assert sample.label.shape == volume.shape
    assert not equal(*made)
    # A mask of the same voxels is the same region.
    drawn = Volume(array=hole[None], affine=volume.affine)
    assert equal(made[0], synthesizer(inpaint=volume, region=drawn)[0])


def test_the_model_does_not_see_the_region(synthesizer: Synthesizer) -> None:
    volume, region = scan(), Box.parse("5:11,4:9,3:6")
    hole = region.mask(volume.grid)
    other = volume.with_array(np.where(hole, 12345.0, volume.array))
    made = [synthesizer(inpaint=source, region=region)[0] for source in (volume, other)]
    assert equal(*made)
    filled = without(other, hole)
    assert np.abs(filled.array).max() <= 900
    assert len(np.unique(filled.array[0][hole])) == 1


def test_tokens_outside_the_region_follow_the_volume(synthesizer: Synthesizer) -> None:
    request = Request(inpaint=scan(shape=(16, 16, 8)), region=Box.parse("0:2,0:2,0:1"))
    job = synthesizer.job(request)
    known = job.known
    assert known is not None
    quantiser = synthesizer.tokenizer.quantiser
    masks = synthesizer.model.schedule.split(known.mask)
    assert [int(mask.sum()) for mask in masks] == [1, 8, 63]
    for sample in synthesizer.run(job, [0, 1, 2]):
        total = torch.zeros_like(known.latent)
        for k, (tokens, mask) in enumerate(zip(sample.pyramid.indices, masks, strict=True)):
            nearest = quantiser.encode_scale(k, known.latent - total)
            assert torch.equal(tokens[mask], nearest[mask])
            total += quantiser.contribution(k, tokens)


def test_regions(synthesizer: Synthesizer) -> None:
    volume = scan()
    box = Box.parse("-3.5:2,-7:-4,3:6mm")
    assert str(box) == "-3.5:2,-7:-4,3:6mm"
    # The middles of voxels along x lie at -12, -11 ... 5 mm, along y at -7 ..., along z at 3, 5 ...
    assert np.array_equal(np.argwhere(box.mask(volume.grid))[[0, -1]], [[9, 0, 0], [13, 2, 1]])
    for region, message in (
        (Box.parse("90:91,0:1,0:1"), "region 90:91,0:1,0:1: holds no voxel"),
        (Box.parse("0:18,0:15,0:9"), "covers the whole volume"),
        (Box.parse("0:17,0:15,0:9"), "beyond the model's field of view of 16 x 16 x 16 mm"),
        (scan(shape=(4, 4, 4)), "is not on the grid of the volume to fill"),
    ):
        with pytest.raises(MedarError, match=message):
            synthesizer(inpaint=volume, region=region)
    for text in ("1:2,3:4", "a:b,0:1,0:1", "2:1,0:1,0:1", "gone.nii.gz"):
        with pytest.raises(MedarError):
            Box.parse(text)


def test_messages_name_the_volume() -> None:
    measured = {"CT": IntensityRule(kind="percentiles", low=0.5, high=99.5)}
    synthesizer = tiny_synthesizer(intensity=measured)
    low = scan(shape=(8, 7, 4), sides=(-2.0, 2.0, 4.0))
    flat = low.with_array(np.full_like(low.array, 7.0))
    with pytest.raises(MedarError, match="upscale: every voxel is 7"):
        synthesizer(upscale=flat)
    with pytest.raises(MedarError, match="inpaint: every voxel is 7"):
        synthesizer(inpaint=flat, region=Box.parse("0:1,0:1,0:1"))


def test_masks_must_reach_the_volume(synthesizer: Synthesizer) -> None:
    image = scan()
    affine = image.affine.copy()
    values = np.full((1, *image.shape), 4, np.uint8)
    box = Box.parse("8:12,6:10,3:6")
    assert synthesizer(inpaint=image, region=box, mask=Volume(array=values, affine=affine))
    affine[:3, 3] += 500.0
    far = Volume(array=values, affine=affine)
    with pytest.raises(MedarError, match="mask: none of its labels lies within the samples"):
        synthesizer(inpaint=image, region=box, mask=far)


def test_upscaling_keeps_the_field_of_view(synthesizer: Synthesizer) -> None:
    low = scan(shape=(8, 7, 4), sides=(-2.0, 2.0, 4.0))
    made = synthesizer(2, upscale=low)
    image = made[0].image
    assert (image.shape, image.spacing) == ((16, 14, 8), (1.0, 1.0, 2.0))
    assert np.allclose(image.grid.extent, low.grid.extent)
    corners = ((grid.affine @ [-0.5, -0.5, -0.5, 1.0])[:3] for grid in (image.grid, low.grid))
    assert np.allclose(*corners)
    assert made[0].label is not None
    assert made[0].label.shape == image.shape
    assert made[0].about["known_scales"] == 2
    pyramids = [sample.pyramid.indices for sample in made]
    same = [torch.equal(*pair) for pair in zip(*pyramids, strict=True)]
    assert same == [True, True, False]
    (first,) = synthesizer(upscale=low, known_scales=1)
    assert first.about["known_scales"] == 1


def test_invalid_upscaling_inputs_are_refused(synthesizer: Synthesizer) -> None:
    for options, message in (
        ({"upscale": scan()}, "hardly coarser than the plan's 1 x 1 x 2 mm"),
        ({"upscale": scan(), "known_scales": 3}, "known scales 3: must be from 1 to 2"),
        ({"upscale": scan(), "known_scales": 0}, "known scales 0: must be from 1 to 2"),
    ):
        with pytest.raises(MedarError, match=message):
            synthesizer(**options)
    wide = synthesizer(upscale=scan(shape=(12, 7, 4), sides=(-2.0, 2.0, 4.0)))[0]
    assert wide.image.shape == (24, 14, 8)
    assert "33.3% of the field of view" in wide.about["notes"][0]


@pytest.mark.parametrize(("start", "sides"), [(0, 16), (-3, 22), (3, 10)])
def test_upscaled_volumes_agree_with_the_input(start: int, sides: int) -> None:
    """On grids that end at the volume border, beyond it, or inside it."""
    random = np.random.default_rng(0)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 0.5
    low = Volume(array=random.uniform(-0.2, 0.2, (1, 8, 8, 8)).astype(np.float32), affine=affine)
    field = low.grid.at_spacing((1.0, 1.0, 1.0))
    fine = field.window((start,) * 3, (sides,) * 3)
    made = random.uniform(-0.5, 0.5, (1, *fine.shape)).astype(np.float32)
    agreed = agreeing(made, low.array, fine, low.grid)
    common = field.window((max(0, start),) * 3, (min(16, sides),) * 3)
    nowhere = 9.0

    def apart(volume: Array) -> float:
        inside = resample(Volume(array=volume, affine=fine.affine), common)
        lowered = resample(inside, low.grid, fill=nowhere).array
        return float(np.abs(lowered - low.array)[lowered != nowhere].mean())

    assert apart(agreed) < 0.4 * apart(made)
    assert np.abs(agreed).max() <= 1


def test_upscaled_volumes_have_no_border_artefact() -> None:
    """The surroundings of a volume, here minimal, do not change the intensities inside it."""
    low = Volume(array=np.full((1, 8, 8, 8), 0.5, np.float32), affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    fine = low.grid.at_spacing((1.0, 1.0, 1.0)).window((-2, -2, -2), (20, 20, 20))
    made = np.full((1, 20, 20, 20), -1.0, np.float32)
    made[:, 2:-2, 2:-2, 2:-2] = 0.5
    assert np.allclose(agreeing(made, low.array, fine, low.grid), made, atol=1e-5)


def test_the_known_scales_of_a_resolution() -> None:
    schedule = ScaleSchedule(grids=((1, 1, 1), (2, 3, 2), (4, 6, 4), (8, 12, 8)))
    fine = (1.0, 1.0, 1.0)
    given: Callable[..., int] = lambda *coarse: scales_given(schedule, fine, coarse)  # noqa: E731
    assert [given(s, s, s) for s in (2, 2.01, 2.1, 4, 8, 100)] == [3, 3, 3, 3, 3, 1]
    assert [given(s, s, s) for s in (8.2, 60, 70)] == [2, 2, 1]
    assert given(1, 1, 4) == 3
    assert given(0.5, 0.5, 2) == 3
    with pytest.raises(MedarError, match="no scale is left"):
        given(1, 1, 1)


def test_the_modality_determines_the_intensities() -> None:
    rules = {name: IntensityRule(kind="window", low=0.0, high=h) for name, h in RANGES.items()}
    synthesizer = tiny_synthesizer(intensity=rules)
    for name, high in RANGES.items():
        image = synthesizer(modality=name)[0].image
        assert (image.modality, image.array.min(), image.array.max()) == (name, 0.0, high)
    with pytest.raises(MedarError, match="state the modality"):
        synthesizer()
    measured = {"MR": IntensityRule(kind="percentiles", low=1.0, high=99.0)}
    (sample,) = tiny_synthesizer(intensity=measured)()
    assert (sample.image.array.min(), sample.image.array.max()) == (0.0, 1000.0)
    assert "values run from 0 to 1000" in sample.about["notes"][0]


def test_a_tokenizer_with_another_schedule_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    model.codebook_size = 17
    with pytest.raises(MedarError, match="17 codes; the tokenizer has"):
        Synthesizer(model, tokenizer)
