"""Drafts: the first scales of a sample, continued to the same volume or under an edited map."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medar.errors import MedarError
from medar.generator.settings import SamplingSettings
from medar.synthesis.drafts import Draft, read_draft
from medar.synthesis.request import Request
from medar.synthesis.samples import write_samples
from medar.synthesis.synthesizer import Synthesizer, SyntheticVolume
from medar.volume import Volume

from .tiny import tiny_detail, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module", params=["none", "mamba", "scale_ssm", "attention"])
def synthesizer(request: pytest.FixtureRequest) -> Synthesizer:
    """A synthesizer with maps, a detail decoder and each mixer."""
    tokenizer = tiny_detail(tiny_tokenizer())
    return Synthesizer(tiny_model(tokenizer, mixer=request.param), tokenizer)


@pytest.fixture(scope="module")
def plain() -> Synthesizer:
    """A synthesizer with the default mixer."""
    tokenizer = tiny_detail(tiny_tokenizer())
    return Synthesizer(tiny_model(tokenizer), tokenizer)


def mask(value: int = 1) -> Volume:
    """A box of one label on the plan's grid."""
    voxels = np.zeros((16, 16, 8), np.int16)
    voxels[4:10, 3:12, 2:6] = value
    return Volume.from_array(voxels, np.diag([1.0, 1.0, 2.0, 1.0]))


def same(first: SyntheticVolume, second: SyntheticVolume) -> bool:
    tokens = torch.equal(first.pyramid.flatten(), second.pyramid.flatten())
    return tokens and np.array_equal(first.image.array, second.image.array)


@pytest.mark.parametrize(("scales", "guided"), [(1, 2.0), (2, 0.0)])
def test_a_finished_draft_is_the_volume_of_its_seed(
    synthesizer: Synthesizer, scales: int, guided: float
) -> None:
    settings = SamplingSettings(guidance_scale=guided, passes=(1, 3, 2))
    options: dict[str, Any] = {"mask": mask(), "class_": "liver", "sampling": settings}
    whole = synthesizer(3, seed=5, **options)
    drafts = synthesizer(3, seed=5, until_scale=scales, **options)
    for one, draft in zip(whole, drafts, strict=True):
        assert len(draft.pyramid.indices) == scales
        upto = one.pyramid.upto(scales)
        assert torch.equal(draft.pyramid.flatten(), upto.flatten())
    chosen = synthesizer.finish([drafts[2], drafts[0]], mask=mask())
    assert same(chosen[0], whole[2])
    assert same(chosen[1], whole[0])
    assert chosen[0].about["seed"] == 7


def test_a_draft_shows_its_scales_without_detail(plain: Synthesizer) -> None:
    (draft,) = plain(seed=5, until_scale=2)
    without = replace(plain.sampling, detail="none")
    shown = []
    plain(seed=5, sampling=without, preview=lambda scales, volumes: shown.append(volumes[0]))
    assert np.array_equal(draft.image.array, shown[1].array)
    assert not np.array_equal(draft.image.array, shown[2].array)


def test_an_edited_map_steers_the_scales_that_are_left(plain: Synthesizer) -> None:
    (draft,) = plain(seed=5, until_scale=2, mask=mask())
    (edited,) = plain.finish([draft], mask=mask(4))
    (other,) = plain(seed=5, mask=mask(4))
    begun = edited.pyramid.upto(2).flatten()
    assert torch.equal(begun, draft.pyramid.flatten())
    assert not torch.equal(begun, other.pyramid.upto(2).flatten())
    assert edited.about["begun"]["scales"] == 2
    assert edited.about["mask"] != draft.about["mask"]


def test_drafts_on_disk_are_continued(plain: Synthesizer, tmp_path: Path) -> None:
    request = Request(until_scale=1, class_="spleen", attributes={"age": 61})
    job = plain.job(request)
    images, made = write_samples(tmp_path / "drafts", plain, job, range(4))
    assert [path.name for path in images] == [f"draft_000{k}.nii.gz" for k in range(4)]
    assert (made, write_samples(tmp_path / "drafts", plain, job, range(4))[1]) == (4, 0)
    draft = read_draft(images[2])
    assert read_draft(tmp_path / "drafts" / "draft_0002").about == draft.about
    finished = plain.job(Request.finishing([draft]))
    write_samples(tmp_path / "finished", plain, finished, [draft.seed])
    whole = plain.job(Request(class_="spleen", attributes={"age": 61}))
    write_samples(tmp_path / "whole", plain, whole, [2])
    for name in ("sample_0000.nii.gz", "sample_0000_label.nii.gz"):
        pair = (tmp_path / folder / name for folder in ("finished", "whole"))
        first, second = (path.read_bytes() for path in pair)
        assert first == second


def test_volumes_of_other_drafts_are_not_kept(plain: Synthesizer, tmp_path: Path) -> None:
    """The same seed and mask continue two drafts, which followed other masks."""
    jobs = []
    for value in (1, 4):
        (sample,) = plain(seed=5, until_scale=2, mask=mask(value))
        draft = Draft(tokens=sample.pyramid, about=sample.about)
        jobs.append(plain.job(Request.finishing([draft], mask=mask(1))))
    assert [write_samples(tmp_path, plain, jobs[0], [5])[1] for _ in range(2)] == [1, 0]
    with pytest.raises(MedarError, match=r"begun .* is requested; choose another folder"):
        write_samples(tmp_path, plain, jobs[1], [5])


@pytest.mark.parametrize("scales", [0, 3, -1])
def test_a_draft_leaves_something_to_draw(plain: Synthesizer, scales: int) -> None:
    with pytest.raises(MedarError, match=f"until_scale must be from 1 to 2, got {scales}"):
        plain(until_scale=scales)


def test_other_models_and_inputs_are_refused(plain: Synthesizer) -> None:
    (sample,) = plain(seed=1, until_scale=1, mask=mask())
    draft = Draft(tokens=sample.pyramid, about=sample.about)

    def refused(match: str, *drafts: Draft, **inputs: Any) -> None:
        with pytest.raises(MedarError, match=match):
            plain.finish(drafts, **inputs)

    refused("no draft to continue")
    refused("has the seed of", draft, Draft(tokens=draft.tokens, about=draft.about))
    refused("made with a mask; continue it the same way", draft)
    volume = plain(seed=1)[0].image
    refused(
        "made with upscale None, but continued", draft, mask=mask(), upscale=volume, known_scales=1
    )
    other = Draft(tokens=draft.tokens, about={**draft.about, "model": "0123"}, name="draft_0001")
    refused("draft_0001: drawn by another model", other, mask=mask())
    tokens = replace(draft.tokens, tokenizer="0123")
    refused("its tokens are of", Draft(tokens=tokens, about=draft.about), mask=mask())
    older = Draft(tokens=draft.tokens, about={**draft.about, "seed": 2, "until_scale": 2})
    refused("another until_scale", draft, older, mask=mask())
    with pytest.raises(MedarError, match="omit one"):
        Request(until_scale=1, drafts=(draft,))


def test_damaged_drafts_are_refused(plain: Synthesizer, tmp_path: Path) -> None:
    write_samples(tmp_path / "out", plain, plain.job(Request(until_scale=1)), [0])
    write_samples(tmp_path / "whole", plain, plain.job(Request()), [0])
    record = tmp_path / "out" / "draft_0000.json"
    with pytest.raises(MedarError, match=r"no draft .*draft_0009\.json is missing"):
        read_draft(tmp_path / "out" / "draft_0009")
    with pytest.raises(MedarError, match="a finished sample, not of a draft"):
        read_draft(tmp_path / "whole" / "sample_0000.nii.gz")
    values = json.loads(record.read_text())
    record.write_text(json.dumps({**values, "seed": "one"}))
    with pytest.raises(MedarError, match=r"damaged record, not of a draft \(no 'seed'"):
        read_draft(record)
    record.write_text(json.dumps(values))
    (tmp_path / "out" / "draft_0000.safetensors").write_bytes(b"damaged")
    with pytest.raises(MedarError, match="not a safetensors file"):
        read_draft(record)
