"""The model folder of a generator: round trips and damaged folders."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medar.errors import MedarError
from medar.generator.generator import Generator
from medar.generator.settings import SamplingSettings
from medar.model_folder import record_digest

from ..synthesis.tiny import tiny_model, tiny_tokenizer


def test_round_trip(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    sampling = SamplingSettings(guidance_scale=1.5, top_k=(4, 8, 0))
    model.save_pretrained(tmp_path / "run" / "model", tokenizer, sampling)
    loaded, its_tokenizer, its_sampling = Generator.load(tmp_path / "run", "cpu")
    assert (loaded.config, its_sampling) == (model.config, sampling)
    assert its_tokenizer.digest == tokenizer.digest
    assert its_tokenizer.plan == tokenizer.plan
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not loaded.training
    assert loaded.digest == model.digest
    bare = Generator.from_pretrained(tmp_path / "run", "cpu")
    assert bare.digest == model.digest


def test_saved_weights_equal_the_model(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path, tokenizer)
    names = load_file(tmp_path / "model.safetensors")
    assert names
    assert not [name for name in names if name.startswith("quantiser.")]
    card = (tmp_path / "README.md").read_text()
    assert "Not a medical device" in card
    assert "organ (liver, spleen, none)" in card


def test_a_tokenizer_can_be_given_as_a_folder(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    tiny_model(tokenizer).save_pretrained(tmp_path / "model", tmp_path / "tokenizer")
    assert Generator.load(tmp_path / "model", "cpu")[1].digest == tokenizer.digest


def test_the_digest_depends_on_weights_and_sizes() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    before = model.digest
    assert before == tiny_model(tokenizer).digest
    assert before != tiny_model(tokenizer, maps=False).digest
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(1e-3)
    assert before != model.digest


def test_damaged_folders(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path, tokenizer)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    good, tensors = json.loads(config.read_text()), load_file(weights)

    def refused(match: str) -> None:
        with pytest.raises(MedarError, match=match) as error:
            Generator.load(tmp_path, "cpu")
        assert "\n" not in str(error.value)

    def write(**changes: object) -> None:
        config.write_text(json.dumps({**good, **changes}))

    write(**{"class": "Tokenizer"})
    refused("is not a generator; expected Generator")
    write(**{"class": ["Generator"]})
    refused("is not a generator; expected Generator")
    for content, kind in (([], "list"), ("Generator", "str")):
        config.write_text(json.dumps(content))
        refused(f"config.json: must hold a JSON object, got a {kind}")
    write(format=1)
    refused("format 1, written by an earlier version of medar; this one reads format 2")
    write(model={**good["model"], "depth": 0})
    refused("config.json: model.depth must be at least 1, got 0")
    write(sampling={"top_p": 2.0})
    refused("sampling: top_p must be at most 1, got 2.0")
    write(model={**good["model"], "depth": 3})
    refused("config.json has changed since the model was saved")
    record_digest(tmp_path)
    refused("not the weights of this configuration")
    write(tokenizer="another")
    refused("trained with another; restore that tokenizer")
    config.write_text(json.dumps(good))
    save_file({n: t for n, t in tensors.items() if n != "head.bias"}, weights)
    record_digest(tmp_path)
    refused("not the weights of this configuration \\(at 'head.bias'\\)")
    save_file({**tensors, "quantiser.gains": torch.ones(3)}, weights)
    record_digest(tmp_path)
    Generator.load(tmp_path, "cpu")
    weights.write_bytes(b"nothing")
    refused("not the weights of this configuration")
    with pytest.raises(MedarError, match="no generator"):
        Generator.load(tmp_path / "gone")
