"""The voxel tokenizer: round trips, folders, and the raster model trained on it."""

from pathlib import Path

import pytest
import torch
from peers.raster import RasterModel
from peers.voxel import VoxelTokenizer, read_tokenizer, voxel_config, voxel_tokenizer
from torch.nn.functional import avg_pool3d, interpolate

from medar.data.plan import IntensityRule, Plan
from medar.errors import MedarError
from medar.generator.conditions import Condition
from medar.generator.settings import GeneratorConfig, ModelSettings
from medar.tokenizer.network import NetworkConfig
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer, TokenizerConfig
from medar.volume import Shape3

torch.set_num_threads(1)


def make_tokenizer(
    size: Shape3 = (8, 12, 8), grid: Shape3 = (2, 3, 4), levels: int = 16
) -> VoxelTokenizer:
    """A voxel tokenizer for the volumes of a plan with another downsampling."""
    plan = Plan(
        spacing=(1.0, 1.0, 1.0),
        mode="volume",
        size=size,
        downsampling=(1, 1, 1),
        intensity={"MR": IntensityRule(kind="percentiles", low=0.5, high=99.5)},
    )
    return voxel_tokenizer(plan, grid, levels)


def volumes(size: Shape3 = (8, 12, 8), batch: int = 2) -> torch.Tensor:
    """Uniform noise in [-1, 1]."""
    noise = torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise[:, :, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    return noise


def test_a_volume_round_trips_within_half_a_level() -> None:
    tokenizer = make_tokenizer(size=(3, 4, 5), grid=(3, 4, 5), levels=16)
    given = volumes((3, 4, 5))
    pyramid = tokenizer.encode(given)
    back = tokenizer.decode(pyramid)
    assert pyramid.indices[0].shape == (2, 60)
    assert (back.volume - given).abs().max() <= 1 / 15 + 1e-6
    assert back.logits is None
    assert torch.equal(tokenizer.encode(back.volume).indices[0], pyramid.indices[0])


def test_tokens_are_levels_in_order_z_fastest() -> None:
    tokenizer = make_tokenizer(size=(2, 1, 3), grid=(2, 1, 3), levels=5)
    values = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 3.0]).view(1, 1, 2, 1, 3)
    assert tokenizer.encode(values).indices[0].tolist() == [[0, 1, 2, 3, 4, 4]]


def test_larger_volumes_are_averaged_and_interpolated() -> None:
    tokenizer = make_tokenizer(levels=4096)
    given = volumes()
    means = avg_pool3d(given, (4, 4, 2))
    pyramid = tokenizer.encode(given)
    assert tokenizer.config.schedule == ScaleSchedule(grids=((2, 3, 4),))
    torch.testing.assert_close(tokenizer.latent(pyramid), means, atol=3e-4, rtol=0)
    smooth = interpolate(tokenizer.latent(pyramid), (8, 12, 8), mode="trilinear")
    torch.testing.assert_close(tokenizer.decode(pyramid).volume, smooth)


def test_a_budget_gives_the_same() -> None:
    tokenizer = make_tokenizer(size=(16, 12, 8), grid=(8, 6, 4))
    pyramid = tokenizer.encode(volumes((16, 12, 8)))
    whole = tokenizer.decode(pyramid).volume
    torch.testing.assert_close(tokenizer.decode_map(pyramid, budget=1).volume, whole)


def test_saving_and_loading_gives_the_same_tokenizer(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = read_tokenizer(tmp_path)
    pyramid = tokenizer.encode(volumes())
    assert isinstance(again, VoxelTokenizer)
    assert (again.config, again.plan, again.codebook_size) == (tokenizer.config, tokenizer.plan, 16)
    assert again.digest == tokenizer.digest != make_tokenizer(levels=17).digest
    assert torch.equal(again.decode(pyramid).volume, tokenizer.decode(pyramid).volume)
    with pytest.raises(
        MedarError, match="class 'VoxelTokenizer' is not a tokenizer; expected Tokenizer"
    ):
        Tokenizer.from_pretrained(tmp_path, "cpu")


def test_a_folder_of_the_other_kind_is_read(tmp_path: Path) -> None:
    network = NetworkConfig(width=4, width_multipliers=(1,), downsampling=(2, 2, 2))
    other = Tokenizer(TokenizerConfig(schedule=ScaleSchedule(grids=((2, 2, 2),)), network=network))
    other.save_pretrained(tmp_path)
    again = read_tokenizer(tmp_path)
    assert type(again) is Tokenizer
    assert again.digest == other.digest
    with pytest.raises(MedarError, match="expected VoxelTokenizer"):
        VoxelTokenizer.from_pretrained(tmp_path, "cpu")


def test_a_pyramid_of_another_tokenizer_is_refused() -> None:
    pyramid = make_tokenizer().encode(volumes())
    with pytest.raises(MedarError, match="decode it with its own tokenizer"):
        make_tokenizer(levels=17).decode(pyramid)


def test_the_raster_model_samples_voxels_and_its_steps_equal_teacher_forcing() -> None:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = RasterModel(
        GeneratorConfig(model=ModelSettings(depth=2, head_width=8)), tokenizer.quantiser
    ).eval()
    condition = Condition(attributes=torch.zeros(2, 0))
    state = model.begin(condition)
    logits, taken = [], []
    for _ in range(model.schedule.length):
        logits.append(model.next_logits(state))
        taken.append(model.append(state, torch.multinomial(logits[-1][:, 0].softmax(-1), 1)))
    tokens = torch.cat(taken, dim=1)
    with torch.no_grad():
        forced = model(tokens, condition)
    torch.testing.assert_close(torch.cat(logits, dim=1), forced, atol=1e-4, rtol=0)
    pyramid = TokenPyramid.from_flat(tokens, model.schedule, model.codebook_size, tokenizer.digest)
    sample = tokenizer.decode(pyramid).volume
    assert sample.shape == (2, 1, 8, 12, 8)
    assert sample.abs().max() <= 1


def test_invalid_configurations_are_refused() -> None:
    with pytest.raises(MedarError, match=r"voxel grid \[3, 3, 4\]: each side must be .* \[8, 12"):
        voxel_config((8, 12, 8), (3, 3, 4))
    with pytest.raises(MedarError, match=r"voxel grid \[0, 3, 4\]: each side must be"):
        voxel_config((8, 12, 8), (0, 3, 4))
    with pytest.raises(MedarError, match="powers of two"):
        voxel_config((8, 12, 8), (8, 4, 8))
    pyramid = ScaleSchedule(grids=((1, 1, 1), (2, 2, 2)))
    with pytest.raises(MedarError, match="voxel tokenizer: scales must be 1, got 2"):
        VoxelTokenizer(TokenizerConfig(schedule=pyramid))
