"""The model folder of a generator: there and back, and what is wrong with one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medar.errors import MedarError
from medar.generator.baselines.voxel import VoxelTokenizer, voxel_tokenizer
from medar.generator.folder import (
    load_model,
    make_model,
    model_digest,
    save_model,
)
from medar.generator.sampling import SamplingSettings
from medar.synthesis.synthesizer import Synthesizer

from ..synthesis.tiny import tiny_model, tiny_tokenizer


@pytest.mark.parametrize("kind", ["next_scale", "raster"])
def test_there_and_back(tmp_path: Path, kind: str) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, kind=kind, maps=kind == "next_scale")
    sampling = SamplingSettings(guidance_scale=1.5, top_k=(4, 8, 0))
    save_model(tmp_path / "run" / "model", model, tokenizer, sampling)
    loaded = load_model(tmp_path / "run", "cpu")
    assert type(loaded.model) is type(model)
    assert (loaded.model.config, loaded.sampling) == (model.config, sampling)
    assert loaded.tokenizer.digest == tokenizer.digest
    assert loaded.tokenizer.plan == tokenizer.plan
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    assert not loaded.model.training
    assert model_digest(loaded.model) == model_digest(model)


def test_the_weights_are_the_models_own(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    save_model(tmp_path, tiny_model(tokenizer), tokenizer)
    names = load_file(tmp_path / "model.safetensors")
    assert names
    assert not [name for name in names if name.startswith("quantiser.")]
    card = (tmp_path / "README.md").read_text()
    assert "Not a medical device" in card
    assert "organ (liver, spleen, none)" in card


def test_a_tokenizer_may_be_named_by_its_folder(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    save_model(tmp_path / "model", tiny_model(tokenizer), tmp_path / "tokenizer")
    assert load_model(tmp_path / "model", "cpu").tokenizer.digest == tokenizer.digest


def test_a_model_of_voxels_has_its_own_tokenizer(tmp_path: Path) -> None:
    plan = tiny_tokenizer(labels={}).plan
    assert plan is not None
    tokenizer = voxel_tokenizer(plan, (4, 4, 4), levels=8)
    save_model(tmp_path, tiny_model(tokenizer, kind="raster", maps=False), tokenizer)
    made = Synthesizer.from_pretrained(tmp_path, "cpu")(2)
    assert type(load_model(tmp_path, "cpu").tokenizer) is VoxelTokenizer
    assert [sample.image.shape for sample in made] == [(16, 16, 8)] * 2


def test_the_digest_tells_weights_and_sizes_apart() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    before = model_digest(model)
    assert before == model_digest(tiny_model(tokenizer))
    assert before != model_digest(tiny_model(tokenizer, maps=False))
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(1e-3)
    assert before != model_digest(model)


def test_unknown_kinds_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(MedarError, match="generator 'diffusion': no such kind; there are: next_s"):
        make_model("diffusion", tiny_model(tokenizer).config, tokenizer)


def test_damaged_folders(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    save_model(tmp_path, tiny_model(tokenizer), tokenizer)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    good, tensors = json.loads(config.read_text()), load_file(weights)

    def refused(match: str) -> None:
        with pytest.raises(MedarError, match=match) as error:
            load_model(tmp_path, "cpu")
        assert "\n" not in str(error.value)

    def say(**changes: object) -> None:
        config.write_text(json.dumps({**good, **changes}))

    say(**{"class": "Tokenizer"})
    refused("is not a generator; expected Generator or RasterModel")
    say(**{"class": ["Generator"]})
    refused("is not a generator; expected Generator or RasterModel")
    for content, kind in (([], "list"), ("Generator", "str")):
        config.write_text(json.dumps(content))
        refused(f"config.json: holds a {kind}; names and values are needed")
    say(format=2)
    refused("format 2, written by another version of medar; this one reads format 1")
    say(depth=0)
    refused("config.json: generator depth 0: allowed from 1")
    say(sampling={"top_p": 2.0})
    refused("sampling: top_p must be at most 1, got 2.0")
    say(depth=3)
    refused("not the weights of this configuration")
    say(tokenizer="another")
    refused("trained with another; copy that one back")
    config.write_text(json.dumps(good))
    save_file({n: t for n, t in tensors.items() if n != "head.bias"}, weights)
    refused("not the weights of this configuration \\(at 'head.bias'\\)")
    save_file({**tensors, "quantiser.gains": torch.ones(3)}, weights)
    load_model(tmp_path, "cpu")
    weights.write_bytes(b"nothing")
    refused("not the weights of this configuration")
    with pytest.raises(MedarError, match="no generator"):
        load_model(tmp_path / "gone")
