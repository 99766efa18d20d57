"""Maps reach every token of every scale; labels become channels."""

import pytest
import torch
from torch import Tensor, nn

from medar.errors import MedarError
from medar.generator.maps import MapEncoder, label_classes, one_hot, source_channels
from medar.tokenizer.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule(grids=((1, 1, 1), (2, 2, 2), (3, 2, 3)))
SIZE = (12, 8, 6)
"""Downsampling by 4, 4 and 2: thick slices along z."""


@pytest.fixture(autouse=True)
def single() -> None:
    torch.set_num_threads(1)


def make(channels: int = 3, *, steering: bool = True) -> MapEncoder:
    torch.manual_seed(0)
    encoder = MapEncoder(channels, 4, 8, SCHEDULE, (4, 4, 2))
    for level in encoder.levels if steering else ():
        nn.init.normal_(level.weight)  # type: ignore[arg-type]
    return encoder


def random_map(batch: int = 2) -> Tensor:
    return one_hot(torch.randint(0, 3, (batch, *SIZE)), 3)


def test_every_scale_sees_a_single_voxel() -> None:
    encoder, given = make(), random_map(1)
    changed = given.clone()
    changed[0, :, 5, 3, 2] = torch.tensor([0.0, 0.0, 1.0]) - given[0, :, 5, 3, 2]
    before, after = encoder(given), encoder(changed)
    assert before.shape == (1, SCHEDULE.length, 8)
    for was, now in zip(SCHEDULE.split(before), SCHEDULE.split(after), strict=True):
        assert (was - now).abs().max() > 1e-4


def test_tokens_see_the_map_at_their_position() -> None:
    """A change in one corner affects the finest token there more than that in the other corner."""
    encoder, given = make(), random_map(1)
    changed = given.clone()
    changed[0, :, :2, :2, :2] = 0
    moved = SCHEDULE.split((encoder(changed) - encoder(given)).norm(dim=2))[-1][0]
    assert moved[0] > 2 * moved[-1]


def test_a_missing_map_is_unknown_everywhere() -> None:
    encoder = make()
    none = encoder(None)
    zeros = encoder(torch.zeros(2, 3, *SIZE))
    torch.testing.assert_close(none.expand(2, -1, -1), zeros)
    unknown = encoder(one_hot(torch.full((1, *SIZE), -1), 3))
    torch.testing.assert_close(none, unknown)
    assert (none - encoder(random_map(1))).abs().max() > 1e-3


def test_the_map_starts_without_effect_and_learns_to_steer() -> None:
    encoder, given = make(steering=False), random_map()
    assert not encoder(given).any()
    optimiser = torch.optim.SGD(encoder.parameters(), lr=0.1)
    target = torch.randn(2, SCHEDULE.length, 8)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = (encoder(given) - target).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        optimiser.step()
    assert losses[2] < losses[1] < losses[0]
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())


def test_batch_items_are_independent() -> None:
    encoder, given = make(), random_map()
    torch.testing.assert_close(encoder(given)[1:], encoder(given[1:]))


def test_other_channels_and_sizes_are_refused() -> None:
    with pytest.raises(
        MedarError, match=r"shape \[1, 2, 12, 8, 6\] must be \(batch, 3, 12, 8, 6\)"
    ):
        make()(torch.zeros(1, 2, *SIZE))
    with pytest.raises(MedarError, match=r"shape \[1, 3, 12, 8, 8\]"):
        make()(torch.zeros(1, 3, 12, 8, 8))


def test_labels_become_classes_in_the_model_order() -> None:
    labels = torch.tensor([[0, 7, 300], [2, -1, 7]], dtype=torch.int16)
    classes = label_classes(labels, [7, 2, 300])
    assert classes.dtype == torch.int16
    assert classes.tolist() == [[0, 1, 3], [2, -1, 1]]
    assert label_classes(torch.zeros(2, dtype=torch.uint8), []).tolist() == [0, 0]


@pytest.mark.parametrize("odd", [3, 301, 60000, -2, -60000])
def test_labels_unknown_to_the_model_are_refused(odd: int) -> None:
    with pytest.raises(MedarError, match=rf"holds the value {odd}; .* 0 \(background\), 7, 2, 300"):
        label_classes(torch.tensor([0, odd, 7]), [7, 2, 300])


def test_the_one_hot_encoding_of_unknown_is_zero() -> None:
    hot = one_hot(torch.tensor([0, 2, -1, 1], dtype=torch.int16).view(1, 4, 1, 1), 3)
    assert hot.shape == (1, 3, 4, 1, 1)
    assert hot.dtype == torch.float32
    assert hot[0, :, :, 0, 0].T.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_unknown_voxels_of_a_source_differ_from_those_of_middle_intensity() -> None:
    source = torch.tensor([-1.0, 0.0, torch.nan, 0.5]).view(1, 4, 1, 1)
    channels = source_channels(source)
    assert (channels.shape, channels.dtype) == ((1, 2, 4, 1, 1), torch.float32)
    assert channels.flatten(2)[0].tolist() == [[-1.0, 0.0, 0.0, 0.5], [1.0, 1.0, 0.0, 1.0]]
    unknown = source_channels(torch.full((1, *SIZE), torch.nan))
    encoder = make(2)
    torch.testing.assert_close(encoder(unknown), encoder(None))
