"""Translation: geometry, intensities, what the source decides, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medar.data.plan import IntensityRule
from medar.data.source import AIR_TO_BONE, EACH_VOLUME, Degradation, Source
from medar.errors import MedarError
from medar.generator.data import GeneratorDataset, condition_of
from medar.generator.generator import Generator
from medar.synthesis.request import Request
from medar.synthesis.synthesizer import Synthesizer
from medar.tokenizer.encoding import encode_data_set
from medar.tokenizer.tokens import TokenDataset
from medar.volume import Volume, read_volume, write_nifti

from .tiny import tiny_model, tiny_tokenizer

MR = Source(modality="MR", intensity=EACH_VOLUME)
NOISY = Source(degradation=Degradation(noise=0.1))


def translator(source: Source = MR, **changes: Any) -> Synthesizer:
    tokenizer = tiny_tokenizer(**changes)
    return Synthesizer(tiny_model(tokenizer, source=source), tokenizer)


@pytest.fixture(scope="module")
def synthesizer() -> Synthesizer:
    """From MR of any scale to CT from -100 to 300 HU."""
    return translator()


def scan(
    shape: tuple[int, int, int] = (12, 15, 7),
    sides: tuple[float, ...] = (-1.0, 1.0, 2.0),
    modality: str | None = "MR",
    seed: int = 0,
) -> Volume:
    """Integer noise on a grid whose first axis points left."""
    voxels = np.random.default_rng(seed).integers(0, 900, shape).astype(np.float32)
    affine = np.diag([*sides, 1.0])
    affine[:3, 3] = 5.0, -7.0, 3.0
    return Volume.from_array(voxels, affine, modality=modality)


def test_results_have_the_grid_of_the_source_and_the_intensities_of_the_target(
    synthesizer: Synthesizer,
) -> None:
    source = scan()
    job = synthesizer.job(Request(source=source))
    (sample,) = synthesizer.run(job, [3])
    assert job.notes == ()
    assert sample.image.grid.matches(source.grid)
    assert sample.image.modality == "CT"
    assert (sample.image.array.min(), sample.image.array.max()) == (-100.0, 300.0)
    assert sample.label is not None
    assert sample.label.grid.matches(source.grid)
    assert sample.about["source"]["file"] == "source"
    assert sample.about["model_spacing"] is False


def test_samples_follow_the_source_and_their_seed(synthesizer: Synthesizer) -> None:
    first, second = synthesizer(2, seed=5, source=scan())
    assert not np.array_equal(first.image.array, second.image.array)
    (again,) = synthesizer(seed=6, source=scan())
    np.testing.assert_array_equal(again.image.array, second.image.array)
    (other,) = synthesizer(seed=6, source=scan(seed=1))
    assert not torch.equal(other.pyramid.flatten(), again.pyramid.flatten())
    # The scale of an MR volume has no meaning.
    brighter = scan().with_array(scan().array * 3)
    (same,) = synthesizer(seed=6, source=brighter)
    assert torch.equal(same.pyramid.flatten(), again.pyramid.flatten())
    # Guidance moves away from no source, which is what sampling without one gives.
    assert synthesizer.job(Request(source=scan(), guidance_scale=2.0)).notes == ()
    (guided,) = synthesizer(seed=6, source=scan(), guidance_scale=2.0)
    assert not torch.equal(guided.pyramid.flatten(), again.pyramid.flatten())
    assert synthesizer(seed=6)[0].image.shape == (16, 16, 8)


def test_a_file_is_translated_as_training_saw_it(tmp_path: Path) -> None:
    """The map of a case in a folder of tokens is that of a request with its source."""
    tokenizer = tiny_tokenizer()
    for name, seed, modality in (("ct", 1, "CT"), ("mr", 2, "MR")):
        write_nifti(tmp_path / name / "a.nii.gz", scan(seed=seed, modality=modality))
    line = {"id": "a", "image": str(tmp_path / "mr" / "a.nii.gz"), "modality": "MR"}
    (tmp_path / "mr.jsonl").write_text(json.dumps(line))
    encode_data_set(tmp_path / "ct", tmp_path / "tokens", tokenizer, source=tmp_path / "mr.jsonl")
    data = GeneratorDataset(TokenDataset(tmp_path / "tokens", maps=True))
    assert data.tokens.about.source == MR
    model = tiny_model(tokenizer, source=data.tokens.about.source)
    batch = {name: value[None] for name, value in data[0].items()}
    trained = condition_of(batch, model.config.condition).map
    volume = read_volume(tmp_path / "mr" / "a.nii.gz")
    asked = Synthesizer(model, tokenizer).job(Request(source=volume)).condition.map
    assert trained is not None
    assert asked is not None
    assert (trained.shape, asked.shape) == ((1, 2, 16, 16, 8), (1, 2, 16, 16, 8))
    assert 0 < asked[:, 1].mean() < 1  # the volume is smaller than the plan's
    torch.testing.assert_close(asked, trained, atol=1e-3, rtol=0)


def test_degraded_volumes_keep_their_own_intensities() -> None:
    rule = IntensityRule(kind="percentiles", low=0, high=100)
    synthesizer = translator(NOISY, intensity={"MR": rule})
    source = scan(modality=None)
    (sample,) = synthesizer(source=source)
    assert sample.image.modality == "MR"
    # The percentiles are those of voxels above the least.
    assert source.array.min() < sample.image.array.min() < source.array.min() + 3
    assert sample.image.array.max() == source.array.max()


def test_the_spacing_of_the_model_can_be_asked_for(synthesizer: Synthesizer) -> None:
    thick = scan(shape=(12, 15, 3), sides=(-1.0, 1.0, 4.0))
    job = synthesizer.job(Request(source=thick))
    assert "resampled from 1 x 1 x 4 mm to the model's 1 x 1 x 2 mm, and back" in job.notes[0]
    job = synthesizer.job(Request(source=thick, model_spacing=True))
    assert job.notes == ()
    (fine,) = synthesizer.run(job, [0])
    assert (fine.image.shape, fine.image.spacing) == ((12, 15, 6), (1.0, 1.0, 2.0))
    centres = (x.affine @ [*((np.array(x.shape) - 1) / 2), 1.0] for x in (fine.image, thick))
    np.testing.assert_allclose(*centres, atol=1e-6)


def test_what_lies_beyond_the_model_is_said(synthesizer: Synthesizer) -> None:
    wide = scan(shape=(20, 16, 8))
    job = synthesizer.job(Request(source=wide))
    assert "20.0% of the voxels lie beyond the model's field of view and hold" in job.notes[0]
    (sample,) = synthesizer.run(job, [0])
    assert (sample.image.array[0, :2] == -100).all()
    assert (sample.image.array[0, -2:] == -100).all()


def test_patches_are_translated_around_the_centre() -> None:
    synthesizer = translator(mode="patch")
    job = synthesizer.job(Request(source=scan(shape=(32, 16, 8))))
    assert "50.0% of the voxels lie beyond" in job.notes[0]
    (sample,) = synthesizer.run(job, [0])
    assert sample.image.shape == (32, 16, 8)
    assert (sample.image.array[0, :8] == -100).all()


def test_several_modalities_need_a_name() -> None:
    rules = {"CT": AIR_TO_BONE, "MR": EACH_VOLUME}
    synthesizer = translator(intensity=rules)
    with pytest.raises(MedarError, match="no intensity rule for 'other'"):
        synthesizer(source=scan())
    (sample,) = synthesizer(source=scan(), modality="CT")
    assert (sample.image.modality, sample.image.array.min()) == ("CT", -1000.0)
    job = synthesizer.job(Request(source=scan(), modality="MR"))
    assert "values run from 0 to 1000, without units" in job.notes[0]


def test_what_cannot_be_translated_is_refused(synthesizer: Synthesizer) -> None:
    label = Volume.from_array(np.ones((4, 4, 4), np.uint8), np.eye(4))
    two = Volume(array=np.random.rand(2, 4, 4, 4).astype(np.float32), affine=np.eye(4))
    flat = Volume.from_array(np.ones((4, 4, 4), np.float32), np.eye(4))
    for volume, message in (
        (scan(modality="CT"), "source: CT, but this generator translates MR; give a MR"),
        (label, "is a label map, not an image"),
        (two, "source: 2 channels; a source volume has one"),
        (flat, "every voxel is 1: a constant volume"),
    ):
        with pytest.raises(MedarError, match=message):
            synthesizer(source=volume)
    tokenizer = tiny_tokenizer()
    for maps in (True, False):
        plain = Synthesizer(tiny_model(tokenizer, maps=maps), tokenizer)
        with pytest.raises(MedarError, match=r"trained without source volumes .*cannot translate"):
            plain(source=scan())
    with pytest.raises(MedarError, match="trained without label maps"):
        synthesizer(mask=label)
    with pytest.raises(MedarError, match="source and mask exclude each other"):
        Request(source=scan(), mask=label)
    with pytest.raises(MedarError, match="model_spacing needs source"):
        Request(model_spacing=True)


def test_drafts_are_continued_with_the_same_source(synthesizer: Synthesizer) -> None:
    whole, draft = (synthesizer(seed=2, source=scan(), until_scale=k)[0] for k in (None, 2))
    (finished,) = synthesizer.finish([draft], source=scan())
    np.testing.assert_array_equal(finished.image.array, whole.image.array)
    with pytest.raises(MedarError, match="source"):
        synthesizer.finish([draft], source=scan(seed=1))


def test_the_folder_of_a_model_states_its_source(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    models = [tiny_model(tokenizer, source=source) for source in (MR, NOISY)]
    assert models[0].digest != models[1].digest
    for model, words in zip(models, ("MR, percentiles 0.5 to 99.5", "noise of 0.1"), strict=True):
        model.save_pretrained(tmp_path, tokenizer)
        assert words in (tmp_path / "README.md").read_text()
        loaded = Generator.from_pretrained(tmp_path, "cpu")
        assert loaded.config == model.config
    tiny_model(tokenizer).save_pretrained(tmp_path, tokenizer)
    assert '"source"' not in (tmp_path / "config.json").read_text()
