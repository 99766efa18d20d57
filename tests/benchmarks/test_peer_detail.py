"""A detail decoder for a peer's first stage learns from that stage's reconstructions."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peers.detail import with_detail
from torch import Tensor

from medar.data.phantoms import write_phantoms
from medar.data.planning import plan_data_set
from medar.data.prepare import prepare
from medar.data.prepared import Prepared
from medar.data.sources import read_manifest
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.network import NetworkConfig
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer, TokenizerConfig

SETTINGS = """
model: {widths: [4, 6]}
data: {batch_size: 2}
training: {steps: 2, precision: fp32, device: cpu, evaluate_every: 2}
"""


class Halving(torch.nn.Module):
    """A first stage that halves all values."""

    def encode_stage_2_inputs(self, volume: Tensor) -> Tensor:
        return volume / 2

    def decode_stage_2_outputs(self, latent: Tensor) -> Tensor:
        return latent


@pytest.fixture
def options(tmp_path: Path) -> Namespace:
    """Of a benchmark over a few phantoms of 16 x 16 x 16 voxels."""
    write_phantoms(tmp_path / "raw", n=6, spacing=20.0)
    manifest = read_manifest(tmp_path / "raw", fractions=(0.5, 0.25, 0.25))
    sizes = {"size": (16, 16, 16), "downsampling": (4, 4, 4), "mode": "volume"}
    plan = plan_data_set(manifest, tmp_path / "prepared", overrides=sizes, workers=1)
    prepare(manifest, plan, tmp_path / "prepared", workers=1)
    (tmp_path / "detail.yaml").write_text(SETTINGS)
    return Namespace(
        tokens=tmp_path / "tokens", prepared=tmp_path / "prepared", out=tmp_path / "out",
        detail=tmp_path / "detail.yaml", detail_minutes=1.0, detail_steps=3,
    )  # fmt: skip


def tokenizer_of(prepared: Path) -> Tokenizer:
    plan = Prepared(prepared).plan
    config = TokenizerConfig(
        schedule=ScaleSchedule(grids=((1, 1, 1), (4, 4, 4))),
        network=NetworkConfig(
            width=4, width_multipliers=(1,), code_width=4, downsampling=(4, 4, 4),
            labels=len(plan.labels),
        ),
        codebook=CodebookSettings(kind="fsq", size=16, width=4),
    )  # fmt: skip
    return Tokenizer(config, plan).eval()


def draw(seeds: Sequence[int]) -> Tensor:
    return torch.zeros(len(seeds), 1, 16, 16, 16)


def test_each_first_stage_gets_a_detail_decoder_of_its_own(options: Namespace) -> None:
    ours = tokenizer_of(options.prepared)
    peer = with_detail(draw, ours, Halving(), "halving", options)([0, 1])
    own = with_detail(draw, ours, None, "medar", options)([0, 1])
    assert peer.shape == own.shape == (2, 1, 16, 16, 16)
    assert not torch.equal(peer, own)
    assert not torch.equal(peer[0], peer[1])
    assert torch.equal(peer[:1], with_detail(draw, ours, Halving(), "halving", options)([0]))


def test_without_detail_samples_stay_as_they_are(options: Namespace) -> None:
    options.detail = None
    nothing: Any = None
    assert with_detail(draw, nothing, None, "medar", options) is draw
