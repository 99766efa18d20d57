"""The complete tokenizer: round trips, saved folders, and the link to its pyramids."""

import json
from pathlib import Path

import pytest
import torch

from medar.data.plan import Plan
from medar.errors import MedarError
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.network import NetworkConfig
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer, TokenizerConfig


def make(*, labels: int = 0, plan: Plan | None = None, seed: int = 0) -> Tokenizer:
    torch.manual_seed(seed)
    config = TokenizerConfig(
        schedule=ScaleSchedule(grids=((1, 1, 1), (2, 2, 1), (4, 3, 2))),
        network=NetworkConfig(
            width=4, width_multipliers=(1, 2), code_width=8, downsampling=(4, 4, 2), labels=labels
        ),
        codebook=CodebookSettings(size=16, width=8),
    )
    return Tokenizer(config, plan)


@pytest.fixture
def volumes() -> torch.Tensor:
    return torch.rand((2, 1, 16, 12, 4), generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_round_trip(volumes: torch.Tensor) -> None:
    tokenizer = make(labels=3).eval()
    pyramid = tokenizer.encode(volumes)
    assert [tuple(i.shape) for i in pyramid.indices] == [(2, 1), (2, 4), (2, 24)]
    decoded = tokenizer.decode(pyramid)
    assert decoded.volume.shape == volumes.shape
    assert decoded.logits is not None
    assert decoded.logits.shape == (2, 4, 16, 12, 4)
    assert torch.allclose(decoded.volume, tokenizer(volumes).volume, atol=1e-5)
    assert torch.equal(decoded.volume, tokenizer.decode(pyramid, upto=3).volume)
    assert not torch.equal(decoded.volume, tokenizer.decode(pyramid, upto=1).volume)


def test_training_reaches_every_weight(volumes: torch.Tensor) -> None:
    tokenizer = make(labels=2).train()
    made = tokenizer(volumes)
    assert made.logits is not None
    loss = (made.volume - volumes).abs().mean() + made.logits.square().mean()
    (loss + made.quantisation.loss).backward()
    assert [n for n, p in tokenizer.named_parameters() if p.grad is None] == []


def test_saving_and_loading_gives_the_same_tokenizer(tmp_path: Path, volumes: torch.Tensor) -> None:
    plan = Plan(spacing=(1, 1, 2), mode="volume", size=(16, 12, 4), downsampling=(4, 4, 2))
    tokenizer = make(plan=plan)
    tokenizer(volumes)  # the codebook starts
    tokenizer.eval().save_pretrained(tmp_path / "model")
    again = Tokenizer.from_pretrained(tmp_path / "model", "cpu")
    assert again.digest == tokenizer.digest
    assert again.plan == plan
    assert not again.training
    pyramid = tokenizer.encode(volumes)
    assert torch.equal(again.decode(pyramid).volume, tokenizer.decode(pyramid).volume)
    pyramid.save(tmp_path / "tokens.safetensors")
    loaded = TokenPyramid.load(tmp_path / "tokens.safetensors")
    assert torch.equal(again.decode(loaded).volume, tokenizer.decode(pyramid).volume)


def test_a_pyramid_of_another_tokenizer_is_refused(volumes: torch.Tensor) -> None:
    pyramid = make(seed=0).eval().encode(volumes)
    with pytest.raises(MedarError, match="decode it with its own tokenizer"):
        make(seed=1).eval().decode(pyramid)


def test_mismatched_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MedarError, match="must be equal"):
        TokenizerConfig(
            schedule=ScaleSchedule(grids=((1, 1, 1),)), network=NetworkConfig(code_width=8)
        )
    plan = Plan(spacing=(1, 1, 1), mode="volume", size=(8, 8, 8), downsampling=(4, 4, 2))
    with pytest.raises(MedarError, match=r"plan of size \[8, 8, 8\]"):
        make(plan=plan)
    make().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(MedarError, match="not the weights of this configuration"):
        Tokenizer.from_pretrained(tmp_path, "cpu")
    (tmp_path / "config.json").write_text('{"class": "Generator", "format": 1}')
    with pytest.raises(MedarError, match="is not a tokenizer; expected Tokenizer"):
        Tokenizer.from_pretrained(tmp_path, "cpu")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(MedarError, match=r"config\.json: must hold a JSON object, got a list"):
        Tokenizer.from_pretrained(tmp_path, "cpu")


def test_the_digest_follows_the_weights() -> None:
    tokenizer = make()
    before = tokenizer.digest
    assert tokenizer.digest == before
    with torch.no_grad():
        next(tokenizer.decoder.parameters()).add_(1)
    assert tokenizer.digest != before
    assert make().digest == before


@pytest.mark.parametrize(
    ("format", "written"), [(1, "an earlier version"), (9, "another version"), (None, "another")]
)
def test_a_folder_of_another_format_is_refused(
    format: int | None, written: str, tmp_path: Path
) -> None:
    make().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": format}))
    with pytest.raises(MedarError, match=f"format {format}, written by {written}.*train the model"):
        Tokenizer.from_pretrained(tmp_path, "cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused(volumes: torch.Tensor, value: float) -> None:
    tokenizer = make(labels=2).eval()
    encoded = tokenizer.encode(volumes)
    pyramid = TokenPyramid(
        indices=encoded.indices, schedule=encoded.schedule, codebook_size=16, tokenizer=""
    )
    with torch.no_grad():
        for part in (tokenizer.encoder, tokenizer.decoder):
            [p for name, p in part.named_parameters() if name.endswith("bias")][-1][:] = value
    with pytest.raises(MedarError, match=r"latents are NaN or infinite.*train again"):
        tokenizer.encode(volumes)
    for decode in (tokenizer.decode, tokenizer.decode_map):
        with pytest.raises(MedarError, match=r"logits are NaN or infinite|volumes are NaN"):
            decode(pyramid)
