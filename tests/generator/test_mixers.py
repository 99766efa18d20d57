"""Every mixer: stateful steps equal the parallel pass, causality, sizes, precision."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medar.errors import MedarError
from medar.generator.mixers import Mixer, MixerSettings, NoMixer, State, make_mixer
from medar.generator.mixers.attention import BlockCausalAttention
from medar.generator.mixers.mamba import MambaMixer, inverse_softplus
from medar.generator.mixers.scale_ssm import ScaleSSM, upsample
from medar.generator.mixers.ssd import ssd_recurrent
from medar.generator.positions import Rotary, coordinates, schedule_coordinates
from medar.tokenizer.schedule import ScaleSchedule

WIDTH, HEADS = 12, 2
SCHEDULES = [
    ScaleSchedule(grids=((1, 1, 1), (2, 2, 2), (3, 2, 3))),
    ScaleSchedule(grids=((1, 2, 1), (2, 2, 3), (2, 3, 5), (4, 3, 5))),
    ScaleSchedule(grids=((2, 3, 2),)),
    ScaleSchedule(grids=((1, 1, 1), (2, 3, 2), (2, 3, 2))),
]
VARIANTS: dict[str, tuple[MixerSettings, int]] = {
    "none": (MixerSettings(kind="none"), 0),
    "attention": (MixerSettings(kind="attention"), 0),
    "mamba": (MixerSettings(kind="mamba", state_dim=4, chunk_size=8), 0),
    "mamba-reversed": (MixerSettings(kind="mamba", state_dim=4, chunk_size=8), 1),
    "mamba-wide": (
        MixerSettings(kind="mamba", state_dim=3, expand=2, conv_kernel=1, chunk_size=5),
        1,
    ),
    "scale_ssm": (MixerSettings(kind="scale_ssm", state_dim=4), 0),
    "scale_ssm-wide": (MixerSettings(kind="scale_ssm", state_dim=1, expand=2), 0),
    "scale_ssm-coarse": (MixerSettings(kind="scale_ssm", state_dim=4, state_max_side=2), 0),
}
every_mixer = pytest.mark.parametrize("name", VARIANTS)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
MIXING = [name for name in VARIANTS if name != "none"]
close = torch.testing.assert_close


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(name: str, schedule: ScaleSchedule) -> Mixer:
    """A mixer at its initialisation, except for norms away from 1."""
    settings, layer = VARIANTS[name]
    mixer = make_mixer(settings, WIDTH, HEADS, schedule, layer)
    for module in mixer.modules():
        if isinstance(module, nn.RMSNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return mixer


def tokens(schedule: ScaleSchedule, batch: int = 2) -> Tensor:
    return torch.randn(batch, schedule.length, WIDTH)


def walk(mixer: Mixer, x: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, list[State]]:
    """Run all scales one after the other; outputs and states."""
    states, mixed = [mixer.start(x)], []
    for k, part in enumerate(schedule.split(x)):
        y, state = mixer.step(k, part, states[-1])
        mixed.append(y)
        states.append(state)
    return torch.cat(mixed, dim=1), states


@every_schedule
@every_mixer
def test_steps_with_a_state_equal_all_scales_at_once(name: str, schedule: ScaleSchedule) -> None:
    mixer, x = make(name, schedule), tokens(schedule)
    y = mixer(x)
    assert y.shape == x.shape
    close(walk(mixer, x, schedule)[0], y, atol=1e-5, rtol=1e-5)


@every_schedule
@every_mixer
def test_a_scale_affects_only_finer_scales(name: str, schedule: ScaleSchedule) -> None:
    mixer, x = make(name, schedule), tokens(schedule)
    before = schedule.split(mixer(x))
    for changed in range(len(schedule)):
        other = [part.clone() for part in schedule.split(x)]
        other[changed] += torch.randn_like(other[changed])
        after = schedule.split(mixer(torch.cat(other, dim=1)))
        for k, (old, new) in enumerate(zip(before, after, strict=True)):
            differs = (old - new).abs().amax() > 1e-5
            reached = k == changed if name == "none" else k >= changed
            assert bool(differs) == reached, (changed, k)
            assert k >= changed or torch.equal(old, new)


@pytest.mark.parametrize("name", [name for name in MIXING if not name.startswith("mamba")])
def test_every_token_sees_all_coarser_scales(name: str) -> None:
    schedule = SCHEDULES[1]
    mixer, x = make(name, schedule), tokens(schedule, batch=1)
    other = x.clone()
    other[:, : schedule.tokens[0]] += 1
    assert ((mixer(x) - mixer(other)).abs().amax(-1) > 1e-6).all()


@every_schedule
@every_mixer
def test_the_first_scales_do_not_depend_on_later_ones(name: str, schedule: ScaleSchedule) -> None:
    mixer, x = make(name, schedule), tokens(schedule)
    whole = mixer(x)
    for start, count in zip(schedule.offsets, schedule.tokens, strict=True):
        end = start + count
        close(mixer(x[:, :end]), whole[:, :end], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["attention", "scale_ssm"])
def test_part_of_a_scale_is_refused(name: str) -> None:
    with pytest.raises(MedarError, match="tokens of shape"):
        make(name, SCHEDULES[0])(torch.randn(1, 5, WIDTH))


@every_mixer
def test_a_batch_equals_single_items(name: str) -> None:
    schedule = SCHEDULES[1]
    mixer, x = make(name, schedule), tokens(schedule, batch=3)
    alone = torch.cat([walk(mixer, part, schedule)[0] for part in x.split(1)])
    close(mixer(x), alone, atol=1e-5, rtol=1e-5)


@every_schedule
@every_mixer
def test_the_stated_state_size_is_correct(name: str, schedule: ScaleSchedule) -> None:
    mixer = make(name, schedule)
    _, states = walk(mixer, tokens(schedule), schedule)
    for state in states:
        assert all(len(value) == 2 for value in state.values()), "the batch comes first"
    largest = max(sum(value[0].numel() for value in state.values()) for state in states)
    assert mixer.state_size == largest


def test_the_mamba_state_does_not_depend_on_the_grid() -> None:
    sizes = {make("mamba", schedule).state_size for schedule in SCHEDULES}
    assert len(sizes) == 1


@every_schedule
@pytest.mark.parametrize("name", MIXING)
def test_gradients_reach_all_parameters(name: str, schedule: ScaleSchedule) -> None:
    mixer, x = make(name, schedule), tokens(schedule).requires_grad_()
    mixer(x).square().sum().backward()
    for parameter, value in mixer.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter
        assert value.grad.abs().amax() > 0, parameter
    assert x.grad is not None
    assert (x.grad.abs().amax(-1) > 0).all()


@every_mixer
def test_bf16_is_close_to_fp32(name: str) -> None:
    schedule = SCHEDULES[1]
    mixer, x = make(name, schedule), tokens(schedule)
    expected = mixer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixer(x)
        stepped, states = walk(mixer, x, schedule)
    for found in (y, stepped):
        assert (found.float() - expected).norm() < 0.03 * expected.norm()
    for recurrent in ("scan", "h"):
        assert all(
            state[recurrent].dtype == torch.float32 for state in states if recurrent in state
        )


@pytest.mark.parametrize("name", MIXING)
def test_initial_outputs_have_a_usable_scale(name: str) -> None:
    mixer = make(name, SCHEDULES[1])
    for scale in (0.1, 1.0, 10.0):
        size = mixer(tokens(SCHEDULES[1]) * scale).square().mean().sqrt().item()
        assert 0.01 < size < 10


def test_each_kind_builds_its_mixer() -> None:
    kinds = {
        "none": NoMixer,
        "attention": BlockCausalAttention,
        "mamba": MambaMixer,
        "scale_ssm": ScaleSSM,
    }
    for name, kind in kinds.items():
        mixer = make(name, SCHEDULES[0])
        assert type(mixer) is kind
        assert mixer.covers_own_scale == (name == "attention")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "atention"}, "unknown mixer 'atention'; did you mean 'attention'"),
        ({"kind": "lstm"}, "unknown mixer 'lstm'; known mixers: attention, mamba, none, scale_ssm"),
        ({"state_dim": 0}, "state_dim must be at least 1, got 0"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"conv": 4}, "key 'conv' has a new name: conv_kernel"),
    ],
)
def test_invalid_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(MedarError, match=message):
        MixerSettings(**values)


def test_every_other_mamba_reads_each_scale_backwards() -> None:
    schedule = SCHEDULES[1]
    settings = VARIANTS["mamba"][0]
    even, odd, third = (make_mixer(settings, WIDTH, HEADS, schedule, k) for k in range(3))
    odd.load_state_dict(even.state_dict())
    third.load_state_dict(even.state_dict())
    x = tokens(schedule)
    backwards = torch.cat([part.flip(1) for part in schedule.split(x)], dim=1)
    y = torch.cat([part.flip(1) for part in schedule.split(even(backwards))], dim=1)
    assert torch.equal(odd(x), y)
    assert torch.equal(third(x), even(x))
    assert not torch.allclose(odd(x), even(x))


def test_mamba_follows_its_equations() -> None:
    """Token by token: the convolution as a sum over earlier tokens, the scan as a recurrence."""
    schedule = SCHEDULES[1]
    mixer, x = make("mamba", schedule), tokens(schedule)
    assert isinstance(mixer, MambaMixer)
    z, fed, dt = torch.split(mixer.into(x), [WIDTH, WIDTH + 2 * 4, HEADS], dim=-1)
    padded = nn.functional.pad(fed, (0, 0, 3, 0))
    weight, bias = mixer.conv.weight[:, 0], mixer.conv.bias
    taps = sum(weight[:, i] * padded[:, i : i + schedule.length] for i in range(4))
    u, b, c = torch.split(nn.functional.silu(taps + bias), [WIDTH, 4, 4], dim=-1)
    u, dt = u.unflatten(-1, (HEADS, -1)), nn.functional.softplus(dt + mixer.dt_bias)
    y, _ = ssd_recurrent(u * dt[..., None], -dt * mixer.log_rate.exp(), b, c)
    y = (y + mixer.skip[:, None] * u).flatten(2)
    close(mixer(x), mixer.out(mixer.norm(y * nn.functional.silu(z))), atol=1e-5, rtol=1e-5)


def test_attention_is_masked_attention_over_all_tokens() -> None:
    schedule = SCHEDULES[1]
    mixer, x = make("attention", schedule), tokens(schedule)
    assert isinstance(mixer, BlockCausalAttention)
    queries, keys, values = (
        part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in mixer.into(x).chunk(3, dim=-1)
    )
    turn = Rotary(schedule_coordinates(schedule), WIDTH // HEADS, max(schedule.latent))
    queries, keys = turn(mixer.query_norm(queries)), turn(mixer.key_norm(keys))
    scale = torch.cat([torch.full((n,), k) for k, n in enumerate(schedule.tokens)])
    scores = queries @ keys.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
    shares = scores.masked_fill(scale[:, None] < scale, -torch.inf).softmax(-1)
    expected = mixer.out((shares @ values).transpose(1, 2).flatten(2))
    close(mixer(x), expected, atol=1e-5, rtol=1e-5)


def test_scale_ssm_follows_its_equations() -> None:
    """The recurrence written out in the order of the definition, one scale after the other."""
    schedule = SCHEDULES[1]
    mixer, x = make("scale_ssm", schedule), tokens(schedule)
    assert isinstance(mixer, ScaleSSM)
    z, inputs = mixer._project(x)
    h, outputs = mixer.start(x)["h"], []
    for k, grid in enumerate(schedule.grids):
        u, b, c, dt = (schedule.split(tensor)[k] for tensor in inputs)
        decay = torch.exp(-dt).repeat_interleave(WIDTH // HEADS, dim=-1)  # (B, T, I)
        raised = upsample(h, grid).flatten(1, 3).mT  # (B, T, I, N)
        new = decay[..., None] * raised + ((1 - decay) * u)[..., None] * b[:, :, None]
        outputs.append((new * c[:, :, None]).sum(-1) + mixer.skip * u)
        h = new.mT.unflatten(1, grid)
    y = torch.cat(outputs, dim=1)
    expected = mixer.out(mixer.norm(y * nn.functional.silu(z)))
    close(mixer(x), expected, atol=1e-5, rtol=1e-5)


def test_a_coarse_state_equals_a_fine_one_where_tokens_do_not_differ() -> None:
    schedule = ScaleSchedule(grids=((1, 1, 1), (2, 2, 2), (3, 4, 3), (5, 6, 4)))
    fine, coarse = make("scale_ssm", schedule), make("scale_ssm-coarse", schedule)
    coarse.load_state_dict(fine.state_dict())
    x = torch.cat([torch.randn(2, 1, WIDTH).expand(-1, n, -1) for n in schedule.tokens], dim=1)
    close(coarse(x), fine(x), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(coarse(tokens(schedule)), fine(tokens(schedule)), atol=1e-3)


def test_the_state_stays_below_100_mb_at_32_sites_per_side() -> None:
    schedule = ScaleSchedule.from_latent((32, 32, 32), 10)
    with torch.device("meta"):
        mixer = make_mixer(MixerSettings(kind="scale_ssm"), 256, 8, schedule, 0)
        whole = make_mixer(MixerSettings(kind="scale_ssm", state_max_side=32), 256, 8, schedule, 0)
    assert 8 * 4 * mixer.state_size < 100e6 < 8 * 4 * whole.state_size


@pytest.mark.parametrize("name", ["scale_ssm", "scale_ssm-coarse"])
def test_the_scale_ssm_state_is_bounded_by_its_inputs(name: str) -> None:
    schedule = ScaleSchedule.from_latent((9, 7, 8), 9)
    mixer = make(name, schedule)
    assert isinstance(mixer, ScaleSSM)
    x = 5 * tokens(schedule)
    _, inputs = mixer._project(x)
    _, states = walk(mixer, x, schedule)
    given = (inputs.u.abs().amax() * inputs.b.abs().amax()).item()
    assert all(state["h"].abs().amax() <= given for state in states)


def test_scale_ssm_can_remember_from_one_scale_to_all() -> None:
    schedule = ScaleSchedule.from_latent((9, 7, 8), 9)
    mixer = make_mixer(MixerSettings(kind="scale_ssm"), 64, 64, schedule, 0)
    assert isinstance(mixer, ScaleSSM)
    steps = nn.functional.softplus(mixer.dt_bias)
    assert steps.min() >= 1 / 9 - 1e-6
    assert steps.max() <= 1 + 1e-6
    assert steps.max() > 3 * steps.min()


@pytest.mark.parametrize(
    ("coarse", "fine"), [((1, 1, 1), (3, 2, 4)), ((2, 3, 2), (3, 5, 2)), ((2, 2, 2), (4, 3, 5))]
)
def test_states_are_upsampled_at_the_right_positions(
    coarse: tuple[int, int, int], fine: tuple[int, int, int]
) -> None:
    """A state that is linear in space stays linear, up to the edges of the volume."""
    indices = coordinates(coarse)
    raised = upsample(indices.reshape(1, *coarse, 1, 3), fine).reshape(-1, 3)
    close(raised, coordinates(fine).clamp(indices.amin(0), indices.amax(0)))


def test_inverse_softplus_inverts_softplus() -> None:
    values = torch.tensor([1e-4, 1e-3, 0.1, 1.0, 20.0])
    close(nn.functional.softplus(inverse_softplus(values)), values)
