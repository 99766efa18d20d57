"""Weights to and from MONAI's and nnU-Net's networks, and MONAI bundles."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunet_twins import Twin
from safetensors.torch import save_file
from small_segmenters import make_plan, make_settings, smooth
from torch import Tensor, nn

from medar.data.plan import IntensityRule, Plan
from medar.errors import MedarError
from medar.segmentation.backbones import BackboneSettings, TrunkSettings
from medar.segmentation.interchange.bundle import differences, export_bundle
from medar.segmentation.interchange.monai import monai_network
from medar.segmentation.interchange.weights import (
    export_weights,
    import_checkpoint,
    read_weights,
)
from medar.segmentation.prediction import segment
from medar.segmentation.segmenter import (
    Segmenter,
    load_backbone_and_head,
    save_backbone,
)
from medar.segmentation.sliding_window import PredictionSettings
from medar.volume import read_volume

TRUNK = TrunkSettings(depth=1, head_width=8, scales=2)
KINDS: dict[str, dict[str, Any]] = {
    "dynunet": {"width": 4},
    "plain": {"width": 4, "block_type": "plain"},
    "segresnet": {"kind": "segresnet", "width": 8},
    "swinunetr": {"kind": "swinunetr", "width": 12},
    "trunk": {"kind": "trunk", "width": 4, "trunk": TRUNK},
}
LARGE: dict[str, Any] = {"size": (40, 32, 32), "downsampling": (1, 1, 1)}


def make(kind: str, seed: int = 0, **changes: Any) -> Segmenter:
    torch.manual_seed(seed)
    sizes = LARGE if kind == "swinunetr" else {}
    return Segmenter(BackboneSettings(**KINDS[kind]), make_plan(**{**sizes, **changes})).eval()


def saved(folder: Path, kind: str, **changes: Any) -> Segmenter:
    model = make(kind, **changes)
    # Normalisations begin at 1 and 0: other values tell whether they are taken over.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        if kind != "swinunetr":
            # No class is the likeliest everywhere.
            logits = model(given(*model.plan.size))
            model.head.bias.sub_(logits.mean((0, 2, 3, 4)))
    model.save_pretrained(folder)
    return model


def given(*sides: int, seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(1, 1, *sides)


def imported(folder: Path, kind: str, checkpoint: Path, plan: Plan, **more: Any) -> Any:
    settings = make_settings(backbone=KINDS[kind], training__seed=7)
    return import_checkpoint(checkpoint, folder, settings, plan, **more)


@pytest.mark.parametrize("kind", ["dynunet", "plain", "segresnet", "swinunetr"])
def test_monais_own_network_gives_the_same_logits(kind: str, tmp_path: Path) -> None:
    from monai.bundle import ConfigParser

    model = saved(tmp_path / "model", kind)
    made = export_weights(tmp_path / "model", tmp_path / "w.pt", "monai")
    assert (made.left_out, made.filled) == ((), ())
    assert made.weights == len(model.state_dict())
    about = json.loads((tmp_path / "w.json").read_text())
    network = ConfigParser({"net": about}).get_parsed_content("net").eval()
    network.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))
    volume = given(64, 32, 32) if kind == "swinunetr" else given(16, 16, 8)
    with torch.no_grad():
        assert torch.equal(network(volume), model(volume))


@pytest.mark.parametrize("kind", ["dynunet", "plain", "segresnet", "swinunetr"])
def test_a_round_trip_through_monai(kind: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", kind)
    export_weights(tmp_path / "model", tmp_path / "w.pt", "monai")
    made = imported(tmp_path / "again", kind, tmp_path / "w.pt", model.plan, head=True)
    assert (made.layout, made.initialised, made.unused) == ("monai", (), ())
    again = Segmenter.from_pretrained(tmp_path / "again", "cpu")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_plain_blocks_are_nnunets_plain_network(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "plain")
    made = export_weights(tmp_path / "model", tmp_path / "w.pth", "nnunet")
    twin = twin_of(tmp_path, made.files)
    volume = given(16, 12, 8)
    with torch.no_grad():
        expected = twin(volume.transpose(2, 4)).transpose(2, 4)
        torch.testing.assert_close(expected, model(volume), rtol=1e-4, atol=1e-4)
    assert made.left_out == ()
    back = imported(tmp_path / "again", "plain", tmp_path / "w.pth", model.plan, head=True)
    assert (back.layout, back.initialised) == ("nnunet", ())
    again = Segmenter.from_pretrained(tmp_path / "again", "cpu")
    assert torch.equal(again(volume), model(volume))


def twin_of(folder: Path, files: tuple[Path, ...]) -> nn.Module:
    """nnU-Net's network as its plans would build it, with all weights."""
    assert [file.name for file in files] == ["w.pth", "w.json"]
    about = json.loads((folder / "w.json").read_text())["architecture"]
    twin = Twin(about, channels=1, classes=3).eval()
    weights = torch.load(folder / "w.pth", weights_only=True)["network_weights"]
    twin.load_state_dict(weights)
    return twin


def test_residual_blocks_fit_nnunets_but_for_the_first_skip(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "dynunet")
    made = export_weights(tmp_path / "model", tmp_path / "w.pth", "nnunet")
    skip = "network.input_block"
    assert set(made.left_out) == {
        f"{skip}.conv3.conv.weight", f"{skip}.norm3.weight", f"{skip}.norm3.bias"
    }  # fmt: skip
    assert "encoder.stages.0.blocks.0.conv1.conv.weight" in made.filled
    twin = twin_of(tmp_path, made.files)
    actual = model.backbone.state_dict()["network.bottleneck.conv1.conv.weight"]
    expected = twin.state_dict()["encoder.stages.2.blocks.0.conv1.conv.weight"]
    assert torch.equal(expected.transpose(2, 4), actual)
    plain = twin(given(8, 12, 16))
    assert plain.shape == (1, 3, 8, 12, 16)
    back = imported(tmp_path / "again", "dynunet", tmp_path / "w.pth", model.plan)
    assert set(back.initialised) == set(made.left_out)
    again = load_backbone_and_head(tmp_path / "again")[0].state_dict()
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(again[name], value) == (name not in back.initialised)


def test_equal_widths_have_no_skip_convolution_in_nnunet(tmp_path: Path) -> None:
    model = Segmenter(BackboneSettings(width=160), make_plan(size=(16, 16, 16)))
    assert model.backbone.channels == (160, 320, 320)
    model.save_pretrained(tmp_path / "model")
    made = export_weights(tmp_path / "model", tmp_path / "w.pth", "nnunet", "encoder")
    assert "network.bottleneck.conv3.conv.weight" in made.left_out
    assert made.filled == ()
    weights = read_weights(tmp_path / "w.pth")
    assert all(name.startswith("encoder.") for name in weights)
    assert not any(".stages.2.blocks.0.skip" in name for name in weights)


def test_encoder_only_checkpoints(tmp_path: Path) -> None:
    model = make("segresnet")
    backbone = model.backbone
    save_backbone(tmp_path / "pre", backbone, model.settings, model.plan, {"pretext": "masked"})
    export_weights(tmp_path / "pre", tmp_path / "w.pt", "monai", "encoder")
    made = imported(tmp_path / "again", "segresnet", tmp_path / "w.pt", model.plan)
    assert set(made.initialised) == {*backbone.state_dict()} - {*backbone.encoder_weights()}
    other = make("segresnet", seed=1)
    other.load_backbone(tmp_path / "again", "encoder")
    volume = given(16, 16, 8)
    for actual, expected in zip(
        backbone.features(volume), other.backbone.features(volume), strict=True
    ):
        assert torch.equal(actual, expected)
    whole = export_weights(tmp_path / "pre", tmp_path / "whole.pt", "monai")
    assert whole.weights == len(backbone.state_dict())
    assert not any("conv_final.2" in name for name in read_weights(tmp_path / "whole.pt"))


@pytest.mark.parametrize(
    ("kind", "to", "changes", "message"),
    [
        (
            "trunk",
            "monai",
            {},
            "weight '.*': has no counterpart in MONAI; only the backbones dynunet",
        ),
        ("trunk", "nnunet", {}, "has no counterpart in nnU-Net"),
        ("segresnet", "nnunet", {}, "weight 'network.convInit.conv.weight': has no counterpart"),
        (
            "plain",
            "nnunet",
            {"spacing": (1.0, 1.0, 3.0), "size": (16, 16, 8)},
            r"upsamples.1.conv_block.conv1.*': nnU-Net's decoder has a narrower kernel",
        ),
    ],
)
def test_networks_without_a_counterpart_are_refused(
    kind: str, to: Any, changes: Any, message: str, tmp_path: Path
) -> None:
    make(kind, **changes).save_pretrained(tmp_path / "model")
    with pytest.raises(MedarError, match=message) as caught:
        export_weights(tmp_path / "model", tmp_path / "w.pt", to)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "w.pt").exists()
    with pytest.raises(MedarError, match=r"written as \.pt or \.pth"):
        export_weights(tmp_path / "model", tmp_path / "w.onnx", to)


def test_anisotropic_encoders_are_exported_to_nnunet(tmp_path: Path) -> None:
    model = make("plain", spacing=(1.0, 1.0, 3.0), size=(16, 16, 8))
    model.save_pretrained(tmp_path / "model")
    made = export_weights(tmp_path / "model", tmp_path / "w.pth", "nnunet", "encoder")
    assert made.weights == len(model.backbone.encoder_weights())
    back = imported(tmp_path / "again", "plain", tmp_path / "w.pth", model.plan)
    assert {*back.initialised} == {*model.backbone.state_dict()} - {
        *model.backbone.encoder_weights()
    }


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("this must not run",))


def test_checkpoints_execute_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "more": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(MedarError, match=r"evil\.pt: not a checkpoint of tensors") as caught:
        read_weights(tmp_path / "evil.pt")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_weights_are_found_under_every_usual_key(tmp_path: Path) -> None:
    weights = {"a.weight": torch.ones(2), "b.bias": torch.zeros(1)}
    logging = {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "epochs": np.int64(3)}
    parallel = {f"module.{name}": value for name, value in weights.items()}
    for number, content in enumerate(
        (weights, parallel, {"network_weights": weights, "logging": logging, "trainer_name": "x"})
    ):
        torch.save(content, tmp_path / f"{number}.pth")
        assert set(read_weights(tmp_path / f"{number}.pth")) == set(weights)
    save_file(weights, tmp_path / "w.safetensors")
    assert set(read_weights(tmp_path / "w.safetensors")) == set(weights)
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    for name, message in (("empty", "no weights"), ("text", "not a checkpoint"), ("no", "no such")):
        with pytest.raises(MedarError, match=message):
            read_weights(tmp_path / f"{name}.pt")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("segresnet", {}, "weight 'convInit.conv.weight': got none"),
        ("plain", {"channels": ("T1", "T2")}, r"got \[4, 1, 3, 3, 3\], need \[4, 2, 3, 3, 3\]"),
        ("plain", {"labels": {1: "one"}}, r"output_block.*: got \[3, 4, 1, 1, 1\]"),
    ],
)
def test_checkpoints_of_other_networks_are_refused(
    kind: str, changes: Any, message: str, tmp_path: Path
) -> None:
    saved(tmp_path / "model", "plain")
    export_weights(tmp_path / "model", tmp_path / "w.pt", "monai")
    with pytest.raises(MedarError, match=message) as caught:
        imported(tmp_path / "again", kind, tmp_path / "w.pt", make_plan(**changes), head=True)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "w.pt"))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("kind", ["dynunet", "plain", "segresnet", "swinunetr"])
def test_bundles_are_accepted_by_monai(kind: str, tmp_path: Path) -> None:
    from monai.bundle import ConfigParser, verify_net_in_out

    model = saved(tmp_path / "model", kind)
    export_bundle(tmp_path / "model", tmp_path / "bundle")
    configs = tmp_path / "bundle" / "configs"
    meta, config = str(configs / "metadata.json"), str(configs / "inference.json")
    verify_net_in_out("network_def", meta_file=meta, config_file=config, device="cpu")
    parser = ConfigParser()
    parser.read_config(config)
    network = parser.get_parsed_content("network_def").eval()
    state = torch.load(tmp_path / "bundle" / "models" / "model.pt", weights_only=True)
    network.load_state_dict(state)
    volume = given(*parser["inferer"]["roi_size"])
    with torch.no_grad():
        assert torch.equal(network(volume), model(volume))


@pytest.mark.parametrize("mode", ["patch", "volume"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_bundle_segments_what_medar_segments(mode: str, tmp_path: Path) -> None:
    """Without medar: a volume of the plan's spacing, in another orientation."""
    from monai.bundle import ConfigParser

    saved(tmp_path / "model", "dynunet", mode=mode, size=(16, 16, 8))
    model = Segmenter.from_pretrained(tmp_path / "model", "cpu")
    root = tmp_path / "bundle"
    export_bundle(tmp_path / "model", root)
    affine = np.array([[0, -1.0, 0, 4], [1.0, 0, 0, 5], [0, 0, 1.0, 6], [0, 0, 0, 1]])
    (root / "input").mkdir()
    nib.save(nib.Nifti1Image(1000 * smooth(20, 18, 12), affine), root / "input" / "c.nii.gz")
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "inference.json"))
    parser["bundle_root"] = str(root)
    for part in parser.get_parsed_content("run"):
        assert part is not None
    made = nib.load(root / "eval" / "c_labels.nii.gz")
    volume = read_volume(root / "input" / "c.nii.gz", modality="CT")
    actual = segment(model, volume, PredictionSettings(mirrors=(), precision="fp32"))
    expected = read_volume(root / "eval" / "c_labels.nii.gz")
    assert made.shape == (20, 18, 12)
    np.testing.assert_allclose(made.affine, affine)
    assert len(np.unique(actual.array)) > 1
    assert np.array_equal(expected.array, actual.array)


def test_bundles_document_their_differences(tmp_path: Path) -> None:
    percentiles = {"other": IntensityRule(kind="percentiles", low=0.5, high=99.5)}
    plan = make_plan(intensity=percentiles, centre="foreground", size=(15, 12, 8),
                     downsampling=(1, 1, 1), interpolation="bspline")  # fmt: skip
    model = Segmenter(BackboneSettings(width=4), plan, ("y",)).eval()
    model.save_pretrained(tmp_path / "model")
    export_bundle(tmp_path / "model", tmp_path / "bundle")
    readme = (tmp_path / "bundle" / "docs" / "README.md").read_text()
    for message in ("all voxels", "bspline", "foreground", "[16, 12, 8]", "Mirror images"):
        assert message in readme
    assert len(differences(make("dynunet"))) == 4
    assert json.loads((tmp_path / "bundle/configs/metadata.json").read_text())["monai_version"]


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("trunk", {}, "no counterpart in MONAI"),
        ("dynunet", {"intensity": {m: IntensityRule(kind="percentiles", low=1, high=99)
                                   for m in ("CT", "MR")}}, "rules for CT, MR"),
        ("dynunet", {"channels": ("a", "b"),
                     "intensity": {"a": IntensityRule(kind="percentiles", low=1, high=99),
                                   "b": IntensityRule(kind="window", low=0, high=9)}},
         "different intensity rules"),
    ],
)  # fmt: skip
def test_unsupported_bundles_are_refused(
    kind: str, changes: Any, message: str, tmp_path: Path
) -> None:
    make(kind, **changes).save_pretrained(tmp_path / "model")
    with pytest.raises(MedarError, match=message):
        export_bundle(tmp_path / "model", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    (tmp_path / "model" / "configs").mkdir()  # of whatever else
    with pytest.raises(MedarError, match="contains other files"):
        export_bundle(tmp_path / "model", tmp_path / "model")


def test_monais_network_needs_no_head() -> None:
    network = monai_network(make("dynunet").backbone, None, 1)
    assert network(given(16, 16, 8)).shape == (1, 1, 16, 16, 8)
