"""Every backbone through the common interface; MONAI's own networks give the same results."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from small_segmenters import make_plan
from torch import Tensor, nn

from medar.data.plan import Plan
from medar.errors import MedarError
from medar.segmentation.backbones import (
    BACKBONES,
    Backbone,
    BackboneSettings,
    TrunkSettings,
    make_backbone,
)
from medar.segmentation.backbones.base import halvings, kernels
from medar.segmentation.segmenter import Segmenter
from medar.tokenizer.convolution import ReliableConv3d

SMALL_TRUNK = TrunkSettings(depth=1, head_width=8, scales=2)
SETTINGS = {
    "dynunet": BackboneSettings(kind="dynunet", width=4),
    "segresnet": BackboneSettings(kind="segresnet", width=8),
    "trunk": BackboneSettings(kind="trunk", width=4, trunk=SMALL_TRUNK),
    "swinunetr": BackboneSettings(kind="swinunetr", width=12),
}
PLANS = {
    "cuboid": make_plan(),
    "thick slices": make_plan(spacing=(1.0, 1.0, 4.0), size=(16, 16, 6), downsampling=(4, 4, 1)),
}
CASES = [(kind, plan) for kind in ("dynunet", "segresnet", "trunk") for plan in PLANS]


def build(kind: str, plan: Plan, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return make_backbone(SETTINGS[kind], plan)


def volume(plan: Plan, channels: int = 1) -> Tensor:
    torch.manual_seed(9)
    return torch.randn(2, channels, *plan.size)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_feature_levels_match_the_declared_channels_and_steps(kind: str, name: str) -> None:
    plan = PLANS[name]
    backbone = build(kind, plan)
    given = backbone.padded(volume(plan))
    levels = backbone.features(given)
    assert all(n % m == 0 for n, m in zip(given.shape[2:], backbone.multiple, strict=True))
    assert len(levels) == len(backbone.channels) == len(backbone.strides)
    for level, width, step in zip(levels, backbone.channels, backbone.steps, strict=True):
        sides = [n // s for n, s in zip(given.shape[2:], step, strict=True)]
        assert level.shape == (2, width, *sides)
    assert backbone.decode(levels).shape == (2, backbone.width, *given.shape[2:])
    assert backbone(volume(plan)).shape == (2, backbone.width, *plan.size)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_convolutions_have_reliable_gradients(kind: str, name: str) -> None:
    """`medar.tokenizer.convolution`: torch's are wrong in bf16 on grids of two sites."""
    modules = list(build(kind, PLANS[name]).modules())
    assert any(isinstance(module, ReliableConv3d) for module in modules)
    assert not any(type(module) is nn.Conv3d for module in modules)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_stages_contain_every_weight_once(kind: str, name: str) -> None:
    backbone = build(kind, PLANS[name])
    named = [p for stage in backbone.stage_parameters() for p in stage]
    assert len(named) == len({id(p) for p in named})
    assert {id(p) for p in named} == {id(p) for p in backbone.parameters()}
    assert all(backbone.stage_parameters())
    backbone(volume(PLANS[name])).square().mean().backward()
    assert all(p.grad is not None for p in named)


@pytest.mark.parametrize("kind", ["dynunet", "segresnet", "trunk"])
def test_encoder_weights_can_be_saved_and_loaded(kind: str) -> None:
    plan = make_plan()
    source, target = build(kind, plan, 0).eval(), build(kind, plan, 1).eval()
    before = target.decode(source.features(volume(plan)))
    assert not torch.equal(source.features(volume(plan))[-1], target.features(volume(plan))[-1])
    target.load_encoder(source.encoder_weights())
    for actual, expected in zip(
        source.features(volume(plan)), target.features(volume(plan)), strict=True
    ):
        assert torch.equal(actual, expected)
    assert torch.equal(target(volume(plan)), before), "the decoder has stayed"
    weights = source.encoder_weights()
    first = next(iter(weights))
    with pytest.raises(MedarError, match=f"{first}.*got none"):
        target.load_encoder({name: w for name, w in weights.items() if name != first})


def test_dynunet_equals_monai() -> None:
    from monai.networks.nets.dynunet import DynUNet

    plan = make_plan(spacing=(1.0, 1.0, 3.0), size=(16, 16, 6), downsampling=(1, 1, 1))
    backbone = build("dynunet", plan).eval()
    assert backbone.strides == ((1, 1, 1), (2, 2, 1), (2, 2, 1))
    own = DynUNet(
        3, 1, 1, [[3, 3, 1], [3, 3, 3], [3, 3, 3]], backbone.strides, backbone.strides[1:],
        filters=[4, 8, 16], res_block=True,
    )  # fmt: skip
    compare(backbone, own, "output_block", plan)


def test_segresnet_equals_monai() -> None:
    from monai.networks.nets.segresnet import SegResNet

    plan = make_plan(size=(16, 24, 16))
    backbone = build("segresnet", plan).eval()
    own = SegResNet(3, 8, 1, 8, blocks_down=(1, 2, 2), blocks_up=(1, 1))
    own.conv_final[2] = nn.Identity()
    compare(backbone, own, None, plan)


def test_swinunetr_equals_monai_and_keeps_the_interface() -> None:
    from monai.networks.nets.swin_unetr import SwinUNETR

    plan = make_plan(size=(40, 32, 32), downsampling=(1, 1, 1))
    backbone = build("swinunetr", plan).eval()
    named = [p for stage in backbone.stage_parameters() for p in stage]
    assert len(named) == len({id(p) for p in named}) == len(list(backbone.parameters()))
    given = torch.randn(1, 1, 64, 32, 32)
    with torch.no_grad():
        levels = backbone.features(given)
        for level, width, step in zip(levels, backbone.channels, backbone.steps, strict=True):
            assert level.shape == (1, width, *(n // s for n, s in zip((64, 32, 32), step)))  # noqa: B905
        own = SwinUNETR(1, 1, feature_size=12).eval()
        copy_weights(backbone, own, "out")
        assert torch.equal(backbone.decode(levels), own(given))
        assert backbone(given[:, :, :40]).shape == (1, 12, 40, 32, 32)


def compare(backbone: Any, own: nn.Module, head: str | None, plan: Plan) -> None:
    """Check that the wrapped network without its head equals the backbone."""
    copy_weights(backbone, own, head)
    with torch.no_grad():
        given = backbone.padded(volume(plan))
        assert torch.equal(backbone.decode(backbone.features(given)), own.eval()(given))


def copy_weights(backbone: Any, own: nn.Module, head: str | None) -> None:
    if head is not None:
        setattr(own, head, nn.Identity())
    missing, unexpected = own.load_state_dict(backbone.network.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("skip_layers.") for name in missing)


def test_thick_slices_are_downsampled_later() -> None:
    assert halvings((1, 1, 1), (40, 56, 40)) == [(2, 2, 2)] * 3
    assert halvings((1, 1, 4), (64, 64, 16))[:2] == [(2, 2, 1), (2, 2, 1)]
    assert halvings((1, 1, 4), (64, 64, 16))[2] == (2, 2, 2)
    assert halvings((1, 1, 1), (7, 7, 7)) == []
    assert kernels((1, 1, 4), [(1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2)]) == [
        (3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [(40, 56, 40), (32, 32, 6), (9, 16, 8), (7, 5, 3)])
def test_thin_volumes_are_supported(size: Any) -> None:
    backbone = build("dynunet", make_plan(size=size, downsampling=(1, 1, 1)))
    with torch.no_grad():
        assert backbone(torch.zeros(1, 1, *size)).shape == (1, 4, *size)


def test_several_channels() -> None:
    plan = make_plan(channels=("T1", "T2"))
    assert build("dynunet", plan)(volume(plan, 2)).shape == (2, 4, *plan.size)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "swinunetr", "width": 16}, "width must be a multiple of 12"),
        ({"kind": "segresnet", "width": 12}, "width must be a multiple of 8"),
        ({"kind": "trunk", "max_levels": 3}, "max_levels cannot be set for kind trunk, got 3"),
        ({"max_levels": 1}, "max_levels must be at least 2, got 1"),
        ({"trunk": SMALL_TRUNK}, "trunk is for kind trunk, not dynunet"),
        ({"kind": "segresnet", "width": 8, "block_type": "plain"}, "is for kind dynunet"),
        ({"options": {"depth": 2}}, "options are for registered backbones"),
        ({"kind": "typo"}, "unknown backbone 'typo'; known backbones: dynunet, segresnet"),
        ({"kind": "dynunett"}, "did you mean 'dynunet'"),
        ({"levels": 4}, "'levels' has a new name: max_levels"),
    ],
)
def test_invalid_settings_are_refused(values: Any, message: str) -> None:
    with pytest.raises(MedarError, match=message):
        BackboneSettings(**values)


def test_unsupported_plans_are_refused() -> None:
    with pytest.raises(MedarError, match="needs volumes with a side above 32 voxels"):
        build("swinunetr", make_plan(size=(32, 32, 32)))
    with pytest.raises(MedarError, match=r"built for volumes of \[16, 12, 8\] voxels"):
        build("trunk", make_plan())(torch.zeros(1, 1, 16, 16, 8))


OWN_BACKBONE = """
from torch import nn

from medar.segmentation.backbones import Backbone, register_backbone


@register_backbone("single_convolution")
class SingleConvolution(Backbone):
    encoder_stages, decoder_stages = (("encoder",),), (("decoder",),)

    def __init__(self, settings, plan):
        super().__init__()
        self.channels, self.strides = (settings.width, settings.width), ((1, 1, 1), (2, 2, 2))
        kernel = settings.options["kernel_size"]
        self.encoder = nn.Conv3d(1, settings.width, kernel, padding=kernel // 2)
        self.decoder = nn.Conv3d(settings.width, settings.width, 1)

    def features(self, volume):
        finest = self.encoder(volume)
        return [finest, nn.functional.avg_pool3d(finest, 2)]

    def decode_levels(self, features):
        return [self.decoder(features[0])]
"""


def test_a_custom_backbone_is_saved_with_its_import_path_and_loads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_backbones.py").write_text(OWN_BACKBONE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(BACKBONES, "_registered", {})  # what it registers ends with the test
    import_module("own_backbones")
    settings = BackboneSettings(kind="single_convolution", width=3, options={"kernel_size": 5})
    model = Segmenter(settings, make_plan()).eval()
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["imports"]["backbone"] == "own_backbones:SingleConvolution"
    monkeypatch.setattr(BACKBONES, "_registered", {})
    monkeypatch.delitem(sys.modules, "own_backbones")
    again = Segmenter.from_pretrained(tmp_path / "model", "cpu")
    assert type(again.backbone).__name__ == "SingleConvolution"
    images = volume(make_plan())
    assert torch.equal(again(images), model(images))
    monkeypatch.setattr(BACKBONES, "_registered", {})
    monkeypatch.delitem(sys.modules, "own_backbones")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    (tmp_path / "own_backbones.py").unlink()
    with pytest.raises(MedarError, match="own_backbones:SingleConvolution cannot be imported"):
        Segmenter.from_pretrained(tmp_path / "model", "cpu")
