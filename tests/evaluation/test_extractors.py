"""Extractors by name, learned ones with untrained weights of the right shapes; their features."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_volumes import smooth
from torch import nn

from medar.errors import MedarError
from medar.evaluation.extractors import (
    EXTRACTORS,
    make_extractor,
    make_extractors,
    register_extractor,
)
from medar.evaluation.extractors.features import feature_set
from medar.evaluation.extractors.handcrafted import (
    ABSENT,
    FLOOR,
    GREY_LEVELS,
    SHAPE_FEATURES,
    radiomics,
    radiomics_names,
    shape_features,
    texture,
    texture_names,
)
from medar.evaluation.extractors.learnt import CHILDREN

RADIOMICS_NAMES, TEXTURE_NAMES = radiomics_names(), texture_names()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove what a test registered after it."""
    monkeypatch.setattr(EXTRACTORS, "_registered", dict(EXTRACTORS._registered))


@pytest.mark.usefixtures("registry")
def test_a_registered_function_is_an_extractor() -> None:
    @register_extractor("mean-v1")
    def mean_intensity(volumes: torch.Tensor) -> torch.Tensor:
        return volumes.mean(dim=(2, 3, 4)).double()

    volumes = smooth(2, 8, 8, 8)
    extractor = make_extractor("mean-v1")
    assert extractor.weights is None
    assert torch.equal(extractor.compute(volumes), mean_intensity(volumes))
    with pytest.raises(MedarError, match=r"known extractors: .*mean-v1"):
        make_extractor("unlike")


@pytest.mark.usefixtures("registry")
def test_a_registered_class_gets_its_weights_file(tmp_path: Path) -> None:
    @register_extractor("scaled-v1")
    class Scaled:
        def __init__(self, path: Path) -> None:
            self.factor = float(path.read_text())

        def __call__(self, volumes: torch.Tensor) -> torch.Tensor:
            return self.factor * volumes.mean(dim=(2, 3, 4)).double()

    path = tmp_path / "weights.txt"
    path.write_text("2.0")
    (extractor,) = make_extractors(("scaled-v1",), path, "cpu")
    assert extractor.weights
    assert extractor.compute(torch.ones(1, 1, 8, 8, 8)).tolist() == [[2.0]]
    with pytest.raises(MedarError, match="scaled-v1 needs its weights"):
        make_extractors(("scaled-v1",), None, "cpu")


def initialise(network: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return network.state_dict()


@pytest.fixture(scope="module")
def medicalnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from monai.networks.nets import resnet10

    network = resnet10(
        spatial_dims=3, n_input_channels=1, feed_forward=False, bias_downsample=False
    )
    path = tmp_path_factory.mktemp("weights") / "resnet_10.pth"
    named = {f"module.{name}": value for name, value in initialise(network).items()}
    torch.save({"state_dict": named}, path)
    return path


@pytest.fixture(scope="module")
def radimagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights laid out as in the authors' file: the children of the network, named by number."""
    from monai.networks.nets import resnet50

    network = resnet50(
        spatial_dims=2, n_input_channels=3, feed_forward=False, bias_downsample=False
    )
    path = tmp_path_factory.mktemp("weights") / "ResNet50.pt"
    numbered = {
        f"backbone.{CHILDREN.index(name.split('.')[0])}.{name.split('.', 1)[1]}": value
        for name, value in initialise(network).items()
    }
    torch.save(numbered, path)
    return path


@pytest.mark.parametrize(("name", "width"), [("radiomics-v2", 68), ("texture-v2", 45)])
def test_extractors_without_weights(name: str, width: int) -> None:
    extractor = make_extractor(name)
    assert (extractor.name, extractor.weights) == (name, None)
    assert extractor.compute(smooth(2, 8, 8, 8)).shape == (2, width)


@pytest.mark.parametrize(("name", "width"), [("medicalnet-v1", 512), ("radimagenet-v1", 2048)])
def test_learned_extractors_do_not_mix_volumes(
    name: str, width: int, medicalnet: Path, radimagenet: Path
) -> None:
    path = medicalnet if name == "medicalnet-v1" else radimagenet
    extractor = make_extractor(name, path)
    assert extractor.weights
    volumes = smooth(2, 8, 10, 12).reshape(1, 2, 8, 10, 12)
    found = extractor.compute(volumes)
    assert found.shape == (1, 2 * width)
    assert found.dtype == torch.float64
    assert found.isfinite().all()
    alone = extractor.compute(volumes[:, 1:])
    torch.testing.assert_close(found[:, width:], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[:, :width], alone, rtol=1e-3)


def test_weights_are_loaded_from_the_file(medicalnet: Path, radimagenet: Path) -> None:
    deep = make_extractor("radimagenet-v1", radimagenet).compute.network
    found = torch.load(radimagenet, weights_only=True)
    assert torch.equal(deep.layer4[0].conv3.weight, found["backbone.7.0.conv3.weight"])
    solid = make_extractor("medicalnet-v1", medicalnet).compute.network
    named = torch.load(medicalnet, weights_only=True)["state_dict"]
    assert torch.equal(solid.layer3[0].conv1.weight, named["module.layer3.0.conv1.weight"])
    assert not deep.training
    assert not any(parameter.requires_grad for parameter in solid.parameters())


def test_invalid_extractors_are_refused_in_one_line(medicalnet: Path, tmp_path: Path) -> None:
    for names, weights, message in (
        (("inception",), None, "unknown extractor 'inception'; known extractors: .*radiomics-v2"),
        (("medicalnet-v1",), None, "medicalnet-v1 needs its weights"),
        (("radimagenet-v1",), medicalnet, "other weights .* use .*ResNet50.pt"),
        (("medicalnet-v1",), tmp_path / "none.pth", "none.pth: cannot be read"),
        (("medicalnet-v1", "radimagenet-v1"), medicalnet, "only one extractor with weights"),
        (("texture-v2",), medicalnet, "weights are for the extractors"),
        ((), None, "extractors must not be empty"),
    ):
        with pytest.raises(MedarError, match=message) as caught:
            make_extractors(names, weights, "cpu")
        assert "\n" not in str(caught.value)


def test_every_feature_has_a_noticeable_difference() -> None:
    volumes = smooth(4, 8, 8, 8).reshape(2, 2, 8, 8, 8)
    for name, features in (("radiomics-v2", radiomics(volumes)), ("texture-v2", texture(volumes))):
        names, noticeable = feature_set(name, features.numpy())
        assert len(set(names)) == len(noticeable) == features.shape[1]
        assert (noticeable > 0).all()
    least = dict(zip(*feature_set("radiomics-v2", radiomics(volumes[:, :1]).numpy()), strict=True))
    assert least["intensity_quantile_0.05"] == least["octant_000"] == 0.02
    assert (
        least["detail_rise_1"] == least["power_from_0.67"] == least["intensity_deviation"] == 0.05
    )
    assert least["gradient_kurtosis"] == 0.1
    shapes = feature_set("shape-v2", np.zeros((3, 2 * len(SHAPE_FEATURES))))
    assert shapes.names[0] == "size (label 0)"
    assert shapes.names[-1] == "flatness (label 1)"
    assert shapes.noticeable[0] == 0.01


def test_features_without_a_unit_get_a_fraction_of_the_usual_deviation() -> None:
    reference = np.random.default_rng(0).normal(size=(50, 5)) * [4.0, 4.0, 4.0, 4.0, 0.0]
    names, noticeable = feature_set("mine-v1", reference)
    assert names == tuple(f"feature_{k}" for k in range(5))
    assert noticeable == pytest.approx(np.full(5, 0.4), rel=0.3)


def radiomics_of(volume: torch.Tensor) -> dict[str, float]:
    return dict(zip(RADIOMICS_NAMES, radiomics(volume)[0].tolist(), strict=True))


@pytest.mark.parametrize("sides", [(8, 8, 8), (9, 11, 16)])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_size_and_channels_give_finite_features(
    sides: tuple[int, int, int], channels: int
) -> None:
    volumes = smooth(4, *sides).reshape(4 // channels, channels, *sides)
    features = radiomics(volumes)
    assert features.shape == (4 // channels, channels * len(RADIOMICS_NAMES))
    assert features.isfinite().all()
    assert len(set(RADIOMICS_NAMES)) == len(RADIOMICS_NAMES)
    alone = torch.cat([radiomics(volume[None]) for volume in volumes])
    torch.testing.assert_close(features, alone, rtol=1e-4, atol=1e-5)


def test_flat_volumes_have_radiomics_too() -> None:
    assert radiomics(torch.full((1, 1, 8, 8, 8), -1.0)).isfinite().all()


def test_quantiles_and_moments_are_those_of_the_voxels() -> None:
    volume = torch.linspace(-1, 1, 512)[torch.randperm(512)].view(1, 1, 8, 8, 8)
    found = radiomics_of(volume)
    assert found["intensity_quantile_0.5"] == pytest.approx(0, abs=0.01)
    assert found["intensity_quantile_0.95"] == pytest.approx(0.9, abs=0.01)
    assert found["intensity_mean"] == pytest.approx(0, abs=1e-6)
    assert found["intensity_kurtosis"] == pytest.approx(torch.tensor(1.8).log().item(), abs=0.01)


def test_features_depend_on_position() -> None:
    volume = torch.full((1, 1, 8, 8, 8), -1.0)
    volume[..., 4:, :4, :4] = 1
    found = radiomics_of(volume)
    assert found["octant_100"] == 1
    assert found["octant_000"] == -1


def test_sharpness_and_noise_move_the_features_of_detail() -> None:
    volume = smooth(1, 16, 16, 16)
    blurred = torch.nn.functional.avg_pool3d(volume, 3, stride=1, padding=1)
    noisy = volume + 0.2 * torch.randn(volume.shape, generator=torch.Generator().manual_seed(0))
    for name in ("power_from_0.67", "detail_0", "difference_1_x", "gradient_mean"):
        assert (
            radiomics_of(blurred)[name] < radiomics_of(volume)[name] < radiomics_of(noisy)[name]
        ), name


def test_gradients_are_between_neighbouring_scales() -> None:
    found = radiomics_of(smooth(1, 16, 16, 16))
    for rise, after, before in (
        ("power_rise_at_0.17", "power_from_0.17", "power_from_0.00"),
        ("detail_rise_1", "detail_1", "detail_0"),
        ("difference_rise_4_z", "difference_4_z", "difference_2_z"),
    ):
        assert found[rise] == pytest.approx(found[after] - found[before], abs=1e-5), rise


def test_too_small_a_volume_is_refused() -> None:
    with pytest.raises(
        MedarError, match="sides must be at least 8 voxels, got a volume of 8 x 8 x 7"
    ):
        radiomics(torch.zeros(1, 1, 8, 8, 7))


def texture_of(volume: torch.Tensor) -> dict[str, float]:
    return dict(zip(TEXTURE_NAMES, texture(volume)[0].tolist(), strict=True))


def test_texture_is_computed_per_volume_and_channel() -> None:
    volumes = smooth(4, 8, 9, 10).reshape(2, 2, 8, 9, 10)
    found = texture(volumes)
    assert found.shape == (2, 2 * len(TEXTURE_NAMES))
    assert found.dtype == torch.float64
    assert torch.equal(found[1, : len(TEXTURE_NAMES)], texture(volumes[1:, :1])[0])
    assert len(set(TEXTURE_NAMES)) == len(TEXTURE_NAMES)


def test_flat_volumes_have_texture_too() -> None:
    found = texture_of(torch.full((1, 1, 8, 8, 8), 1.0))
    assert found["homogeneity_1_x"] == 1
    assert found["contrast_4_z"] == pytest.approx(torch.tensor(FLOOR).log().item())


def test_stripes_affect_only_their_axis() -> None:
    volume = torch.full((1, 1, 8, 8, 8), -1.0)
    volume[..., ::2, :] = 1  # changes with every step along y, and is back after two
    found = texture_of(volume)
    assert found["homogeneity_1_x"] == found["homogeneity_1_z"] == found["homogeneity_2_y"] == 1
    assert found["contrast_1_y"] == pytest.approx(
        torch.tensor((GREY_LEVELS - 1) ** 2 + FLOOR).log().item()
    )
    assert found["correlation_1_y"] == pytest.approx(-1, abs=1e-6)


def test_blur_makes_texture_smoother() -> None:
    volume = smooth(1, 16, 16, 16)
    blurred = torch.nn.functional.avg_pool3d(volume, 3, stride=1, padding=1)
    for name, sign in (("contrast_1_x", -1), ("homogeneity_1_z", 1), ("correlation_2_y", 1)):
        assert sign * (texture_of(blurred)[name] - texture_of(volume)[name]) > 0, name


def shape_of(labels: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 1)) -> list[dict]:
    rows = shape_features(labels[None], [1, 2], spacing).reshape(2, len(SHAPE_FEATURES))
    return [dict(zip(SHAPE_FEATURES, row, strict=True)) for row in rows]


def test_a_box_is_shape_of() -> None:
    labels = np.zeros((8, 10, 12), np.uint8)
    labels[2:4, 1:9, 0:4] = 1
    box, absent = shape_of(labels)
    assert box["size"] ** 3 == pytest.approx(2 * 8 * 4 / labels.size)
    assert [box[f"extent_{axis}"] for axis in "xyz"] == pytest.approx([2 / 8, 8 / 10, 4 / 12])
    assert [box[f"centre_{axis}"] for axis in "xyz"] == pytest.approx([3 / 8, 5 / 10, 2 / 12])
    # Deviations along the axes are as the sides, 8 to 4 to 2.
    assert np.exp([box["elongation"], box["flatness"]]) == pytest.approx([2, 2])
    assert tuple(absent.values()) == ABSENT


def test_shapes_are_measured_in_millimetres() -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:6, 2:6, 2:6] = 2
    labels[0, 0, 0] = 1
    voxel, cube = shape_of(labels)
    assert (cube["elongation"], cube["flatness"]) == pytest.approx((0, 0))
    assert np.isfinite(list(voxel.values())).all()
    assert np.exp(shape_of(labels, (1, 1, 3))[1]["elongation"]) == pytest.approx(3)
