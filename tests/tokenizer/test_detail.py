"""The detail decoder: drawing by seed and by slabs, its folder, its training."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from medar.data.loading import PreparedDataset
from medar.errors import MedarError
from medar.settings import from_dict
from medar.tokenizer import Tokenizer
from medar.tokenizer.detail import SPREAD, DetailConfig, DetailDecoder
from medar.tokenizer.detail_training import (
    make_task,
    through_tokens,
    train_detail,
)
from medar.tokenizer.encoding import encode_data_set
from medar.tokenizer.noise import LARGEST, draw_noise
from medar.tokenizer.settings import DetailModelSettings, DetailSettings, TokenizerSettings
from medar.tokenizer.training import train_tokenizer
from medar.volume import Volume

Settings = Callable[..., TokenizerSettings]
MakeTokenizer = Callable[..., Tokenizer]


def decoder_of(**changes: Any) -> DetailDecoder:
    """A small decoder whose output depends on all of its weights."""
    torch.manual_seed(0)
    sizes = {"strides": ((2, 2, 2),), "widths": (4, 6), "fold": (1, 1, 1), "steps": 2, **changes}
    decoder = DetailDecoder(DetailConfig(**sizes)).eval()
    for parameter in decoder.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.2)
    return decoder


def decoded(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 0.5


def detail_settings(**training: Any) -> DetailSettings:
    values = {
        "model": {"widths": [4, 6]},
        "data": {"batch_size": 2, "flips": ["x"]},
        "training": {
            "steps": 4, "precision": "fp32", "device": "cpu", "log_every": 1, "evaluate_every": 2,
            **training,
        },
    }  # fmt: skip
    return from_dict(DetailSettings, values, "settings")


@pytest.fixture
def trained(prepared: Path, settings: Settings, tmp_path: Path) -> Path:
    train_tokenizer(settings(), prepared, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_a_seed_decides_the_detail() -> None:
    decoder, volume = decoder_of(), decoded(1, 1, 8, 8, 8)
    first = decoder.draw(volume, [3])
    assert torch.equal(first, decoder.draw(volume, [3]))
    assert not torch.equal(first, decoder.draw(volume, [4]))
    assert not torch.equal(first, decoder.draw(volume, [3], 5))
    assert first.abs().max() <= 1
    assert (first - volume).abs().max() > 1e-3


def test_volumes_of_a_batch_do_not_change_each_other() -> None:
    decoder, volumes = decoder_of(), decoded(3, 1, 8, 8, 8)
    together = decoder.draw(volumes, [5, 6, 7])
    torch.testing.assert_close(together[1:2], decoder.draw(volumes[1:2], [6]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(24, 4, 8), (4, 24, 8), (8, 4, 24)], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fold": (2, 1, 1), "prediction": "residual", "correlation": (0.5, 0.0, 0.7)},
        {"strides": ((2, 2, 2), (1, 2, 2)), "widths": (4, 6, 6)},
        {"strides": (), "widths": (4,)},
    ],
    ids=str,
)
def test_slabs_equal_the_whole(changes: dict[str, Any], shape: tuple[int, int, int]) -> None:
    decoder, volume = decoder_of(**changes), decoded(2, 1, *shape)
    calls: list[int] = []
    decoder.stem.register_forward_hook(lambda *_: calls.append(1))
    whole = decoder.draw(volume, [0, 1])
    assert len(calls) == decoder.config.steps
    with FlopCounterMode(display=False) as counter:
        by_slabs = decoder.draw(volume, [0, 1], budget=1)
    assert len(calls) == decoder.config.steps
    torch.testing.assert_close(by_slabs, whole, atol=2e-5, rtol=0)
    with FlopCounterMode(display=False) as expected:
        decoder.draw(volume, [0, 1])
    assert counter.get_total_flops() == expected.get_total_flops()


def test_the_velocity_follows_from_the_predicted_residual() -> None:
    decoder, volume = decoder_of(prediction="residual"), decoded(2, 1, 8, 8, 8)
    residual, time = decoded(2, 1, 8, 8, 8) * 3, torch.tensor([1.0, 0.25])
    log_size = decoder.log_size(volume)
    predicted = decoder.predict(residual, volume, log_size, time)
    velocity = decoder(residual, volume, log_size, time)
    # One step along it, all the way to time 0, arrives at what was predicted.
    arrived = residual - time[:, None, None, None, None] * velocity
    torch.testing.assert_close(arrived, predicted, atol=1e-5, rtol=0)


def test_any_size_is_possible() -> None:
    decoder = decoder_of(fold=(2, 2, 2))
    assert decoder.draw(decoded(1, 1, 7, 5, 9), [0]).shape == (1, 1, 7, 5, 9)


def test_noise_is_white_and_independent_of_the_numbers_that_choose_tokens() -> None:
    noise = draw_noise(3, (40, 40, 40))
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    tokens = torch.randn(64_000, generator=torch.Generator().manual_seed(3)).view(40, 40, 40)
    assert not torch.equal(noise, tokens)


def test_where_nothing_is_expected_nothing_is_added() -> None:
    decoder, volume = decoder_of(), decoded(1, 1, 8, 8, 8)
    last = decoder.scale.layers[-1]
    assert isinstance(last, torch.nn.Conv3d)
    assert last.bias is not None
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, -20.0)
    assert (decoder.draw(volume, [0]) - volume).abs().max() < 0.02


def test_a_tokenizer_keeps_its_digest_and_codes(
    make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    other = tokenizer.with_detail(decoder_of(fold=(1, 1, 1), strides=((2, 2, 2),)))
    assert other.digest == tokenizer.digest
    assert tokenizer.detail is None
    other.save_pretrained(tmp_path)
    back = Tokenizer.from_pretrained(tmp_path, "cpu")
    assert back.digest == tokenizer.digest
    volume = decoded(2, 1, 8, 8, 8)
    assert torch.equal(back.add_detail(volume, [1, 2]), other.add_detail(volume, [1, 2]))
    assert torch.equal(back.add_detail(volume, [1, 2], "none"), volume)
    assert back.encode(volume).indices[-1].equal(tokenizer.encode(volume).indices[-1])


def test_the_detail_decoder_of_another_tokenizer_is_refused(
    make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    make_tokenizer().with_detail(decoder_of()).save_pretrained(tmp_path / "a")
    make_tokenizer(seed=1).save_pretrained(tmp_path / "b")
    (tmp_path / "a" / "detail").rename(tmp_path / "b" / "detail")
    with pytest.raises(MedarError, match="detail decoder of tokenizer"):
        Tokenizer.from_pretrained(tmp_path / "b", "cpu")


def test_steps_without_a_detail_decoder_are_refused(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.detail_steps() == 0
    with pytest.raises(MedarError, match="no detail decoder"):
        tokenizer.detail_steps(2)
    with pytest.raises(MedarError, match="at least 1 step, got 0"):
        tokenizer.with_detail(decoder_of()).detail_steps(0)


def test_reconstruction_has_detail_unless_it_is_turned_off(make_tokenizer: MakeTokenizer) -> None:
    plain = make_tokenizer()
    tokenizer = plain.with_detail(decoder_of())
    voxels = decoded(8, 8, 8).numpy() * 1000
    volume = Volume.from_array(voxels, torch.eye(4).numpy(), modality="CT")
    before = plain.reconstruct(volume).image.array
    assert (tokenizer.reconstruct(volume, detail="none").image.array == before).all()
    first = tokenizer.reconstruct(volume).image.array
    assert (first == tokenizer.reconstruct(volume).image.array).all()
    assert (first != before).any()
    assert (first != tokenizer.reconstruct(volume, seed=1).image.array).any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_leaves_a_tokenizer_with_detail(
    trained: Path, prepared: Path, tmp_path: Path, precision: str
) -> None:
    chosen = detail_settings(precision=precision)
    outcome = train_detail(chosen, trained, prepared, tmp_path / "detail")
    before = Tokenizer.from_pretrained(trained, "cpu")
    after = Tokenizer.from_pretrained(tmp_path / "detail", "cpu")
    assert after.digest == before.digest
    assert after.detail is not None
    assert outcome.best is not None
    assert math.isfinite(outcome.best)


def test_noise_gets_the_correlation_of_the_residuals(trained: Path, prepared: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(trained, "cpu")
    train = PreparedDataset(prepared, split="train", labels=False)
    volumes = torch.stack([train[index]["image"] for index in range(len(train))])
    residual = (volumes - through_tokens(tokenizer, volumes)).double()
    along_x = (residual[:, :, 1:] * residual[:, :, :-1]).mean() / residual.square().mean()
    model = DetailModelSettings(correlation="auto")
    task = make_task(replace(detail_settings(), model=model), tokenizer, prepared)
    assert task.model.config.correlation[0] == pytest.approx(min(float(along_x), LARGEST), abs=0.01)
    model = DetailModelSettings(correlation=(0.0, 0.0, 0.5), prediction="residual")
    config = make_task(replace(detail_settings(), model=model), tokenizer, prepared).model.config
    assert (config.correlation, config.prediction) == ((0.0, 0.0, 0.5), "residual")


def test_a_decoder_of_an_earlier_version_draws_what_it_drew_then(
    trained: Path, prepared: Path, tmp_path: Path
) -> None:
    train_detail(detail_settings(), trained, prepared, tmp_path / "detail")
    config = tmp_path / "detail" / "model" / "detail" / "config.json"
    values = json.loads(config.read_text())
    assert values.pop("correlation") == [0, 0, 0]
    assert values.pop("prediction") == "velocity"
    assert values.pop("method") == "one_step"
    del values["settings"]
    config.write_text(json.dumps({**values, "steps": 4}))
    detail = Tokenizer.from_pretrained(tmp_path / "detail", "cpu").detail
    assert detail is not None
    read = detail.config
    assert (read.correlation, read.prediction) == ((0, 0, 0), "velocity")
    assert (read.steps, read.method) == (4, "euler")


def test_tokens_and_generators_keep_the_detail_decoder(
    trained: Path, prepared: Path, tmp_path: Path
) -> None:
    train_detail(detail_settings(), trained, prepared, tmp_path / "detail")
    encode_data_set(prepared, tmp_path / "tokens", tmp_path / "detail")
    assert Tokenizer.from_pretrained(tmp_path / "tokens" / "tokenizer", "cpu").detail is not None
    # Without one, the tokens are the same and no old one is left.
    again = encode_data_set(prepared, tmp_path / "tokens", trained)
    assert again.made == 0
    assert Tokenizer.from_pretrained(tmp_path / "tokens" / "tokenizer", "cpu").detail is None


def test_an_interrupted_training_gives_the_same_weights(
    trained: Path, prepared: Path, tmp_path: Path
) -> None:
    def weights(out: Path) -> dict[str, torch.Tensor]:
        return load_file(out / "model" / "detail" / "model.safetensors")

    train_detail(detail_settings(save_every=1), trained, prepared, tmp_path / "whole")
    stop = tmp_path / "stopped"
    task = make_task(detail_settings(save_every=1), Tokenizer.from_pretrained(trained), prepared)
    from medar.training import fit

    calls = iter([False, False, True])
    original = task.after_step

    def after_step(step: int) -> None:
        original(step)
        if next(calls):
            raise RuntimeError("killed")

    task.after_step = after_step  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="killed"):
        fit(task, detail_settings(save_every=1).training, stop)
    train_detail(detail_settings(save_every=1), trained, prepared, stop)
    one, two = weights(tmp_path / "whole"), weights(stop)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_last_part_of_the_training_is_about_draws_in_one_step(
    trained: Path, prepared: Path
) -> None:
    task = make_task(detail_settings(), Tokenizer.from_pretrained(trained), prepared)
    batch = next(task.batches(0, 0))
    task.progress = 0.0
    assert set(task.loss(batch, 0)[1]) == {"loss", "flow", "scale"}
    assert math.isnan(task.evaluate()["energy_score"])
    task.progress = 0.9
    assert set(task.loss(batch, 1)[1]) == {"loss", "energy", "scale"}
    assert math.isfinite(task.evaluate()["energy_score"])
    assert (task.model.config.method, task.model.config.steps) == ("one_step", 1)
    flow = replace(detail_settings(), one_step=None)
    config = make_task(flow, Tokenizer.from_pretrained(trained), prepared).model.config
    assert (config.method, config.steps) == ("multistep", 4)


def test_a_draw_in_one_step_is_what_training_judges() -> None:
    decoder, volume = decoder_of(method="one_step", steps=1), decoded(2, 1, 8, 8, 8)
    noise = torch.stack([draw_noise(seed, volume.shape[1:]) for seed in (3, 4)])
    log_size = decoder.log_size(volume)
    residual = decoder.in_one_step(noise, volume, log_size)
    expected = (volume + SPREAD * log_size.exp() * residual).clamp(-1, 1)
    torch.testing.assert_close(
        decoder.draw(volume, [3, 4], precision="fp32"), expected, atol=1e-5, rtol=0
    )
    with pytest.raises(MedarError, match="steps must be 1: this decoder draws in one, got 2"):
        decoder.draw(volume, [3, 4], 2)
    with pytest.raises(MedarError, match="steps must be at least 1, got 0"):
        decoder_of().draw(volume, [3, 4], 0)


def test_the_multistep_method_is_of_second_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """On dr/dt = -3 r, whose solution is known, twice the steps leave a quarter of the error."""
    decoder, volume = decoder_of(method="multistep"), decoded(1, 1, 8, 8, 8)
    monkeypatch.setattr(decoder, "predict", lambda residual, *_, **__: -3.0 * residual)
    monkeypatch.setattr(decoder, "log_size", lambda volume: torch.full_like(volume, -6.0))
    scale, noise = SPREAD * math.exp(-6.0), draw_noise(0, volume.shape[1:])[None]

    def error(steps: int) -> float:
        arrived = (decoder.draw(volume, [0], steps, precision="fp32") - volume) / scale
        return float((arrived - math.exp(3.0) * noise).abs().max())

    assert error(64) / error(32) == pytest.approx(1 / 4, rel=0.15)


def test_widths_and_strides_must_fit() -> None:
    with pytest.raises(MedarError, match="widths must be one more than the 1 strides, got 3"):
        DetailConfig(strides=((2, 2, 2),), widths=(4, 6, 8))


def test_decoded_volumes_are_kept_or_made_again_with_the_same_result(
    trained: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded_batch() -> torch.Tensor:
        task = make_task(detail_settings(), Tokenizer.from_pretrained(trained), prepared)
        batch = next(task.batches(0, 0))
        made = task._decode(batch)
        assert torch.equal(made, task._decode(batch))
        return made

    kept = decoded_batch()
    assert kept.abs().max() <= 1
    monkeypatch.setattr("medar.tokenizer.detail_training.CACHE_FRACTION", 0)
    torch.testing.assert_close(kept, decoded_batch(), atol=1e-3, rtol=0)  # float16
