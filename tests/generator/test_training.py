"""Training a generator: learning, outputs, resuming, several processes."""

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medar.errors import MedarError
from medar.files import read_json, write_json
from medar.generator.conditions import Condition
from medar.generator.generator import Generator
from medar.generator.maps import one_hot, source_channels
from medar.generator.mixers import MIXERS, Mixer, MixerSettings, State, register_mixer
from medar.generator.sampling import sample
from medar.generator.settings import SamplingSettings
from medar.generator.task import GeneratorTask
from medar.generator.training import make_task, train_generator
from medar.settings import to_dict
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokens import TokenDataset

from ..synthesis.tiny import tiny_tokenizer
from .toy_tokens import AUGMENTED, CERTAIN, CODES, INTENSITIES, SOURCE, settings, write_tokens

ROOT = Path(__file__).parents[2]
LONG = {"training__steps": 50, "training__evaluate_every": 50, "training__save_every": 50}


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen cases of two classes; a tenth of their tokens are random."""
    return write_tokens(tmp_path_factory.mktemp("tokens"), tiny_tokenizer(), noise=0.1)


@pytest.fixture(scope="session")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with label maps that encode the class."""
    folder = tmp_path_factory.mktemp("mapped")
    return write_tokens(folder, tiny_tokenizer(), noise=0.1, maps=True)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def matching_fractions(model: Generator, condition: Condition) -> list[float]:
    """Fractions of the sampled tokens that match class "a" and class "b"."""
    found = sample(model, condition, range(2), SamplingSettings()).tokens
    right = found == torch.tensor(list(CODES.values()))[:, None]
    return right.float().mean(1).tolist()


def test_a_trained_generator_reproduces_the_classes(tokens: Path, tmp_path: Path) -> None:
    chosen = settings(**LONG, training__log_every=10)
    outcome = train_generator(chosen, tokens, tmp_path)
    found = lines(tmp_path)
    assert found[-1]["train/loss"] < 0.5 * found[0]["train/loss"]
    metrics = outcome.metrics
    assert metrics["cross_entropy"] < metrics["marginal"] - 0.5
    loaded, tokenizer, _ = Generator.load(tmp_path / "model", "cpu")
    assert tokenizer.plan == tiny_tokenizer().plan
    classes = torch.tensor([[0.0], [1.0]])
    assert min(matching_fractions(loaded, Condition(attributes=classes))) > 0.75

    # What was evaluated is what was left: the mean over validation tokens, by hand.
    data = TokenDataset(tokens, split="val", variant=0)
    rows = torch.stack([item["indices"] for item in data])
    index = torch.tensor([["ab".index(case.attributes["class"])] for case in data.cases])
    with torch.no_grad():
        logits = loaded(rows, Condition(attributes=index.float()))
    each = -logits.log_softmax(-1).gather(-1, rows[..., None])[..., 0]
    assert metrics["cross_entropy"] == pytest.approx(float(each.mean()), abs=1e-5)
    assert metrics["cross_entropy/scale_1"] == pytest.approx(float(each[:, 1:9].mean()), abs=1e-5)
    right = (logits.argmax(-1) == rows).float()
    assert metrics["accuracy"] == pytest.approx(float(right.mean()), abs=1e-5)
    assert metrics["accuracy/scale_2"] == pytest.approx(float(right[:, 9:].mean()), abs=1e-5)


def test_augmented_variants_do_not_show_in_samples(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "tokens", tiny_tokenizer(), augmented=True)
    chosen = settings(**LONG, training__learning_rate=0.02, data__original_fraction=0.5)
    train_generator(chosen, folder, tmp_path / "run")
    model = Generator.from_pretrained(tmp_path / "run", "cpu")
    for marks, low, high in ((None, 0.0, 0.1), (torch.tensor([True] * 4), 0.5, 1.0)):
        condition = Condition(attributes=torch.tensor([[0.0], [1.0]] * 2), augmented=marks)
        found = sample(model, condition, range(4), SamplingSettings()).tokens
        assert low <= float((found == AUGMENTED).float().mean()) <= high


@pytest.mark.parametrize(("fraction", "marked"), [(0.0, False), (0.3, True)])
def test_variants_are_marked_unless_nothing_else_is_learnt(
    fraction: float, marked: bool, tmp_path: Path
) -> None:
    folder = write_tokens(tmp_path, tiny_tokenizer(), augmented=True)
    task = make_task(settings(data__original_fraction=fraction), folder)
    assert task.model.config.condition.augmentation is marked
    assert (task.model.augmented is not None) is marked


def test_a_map_carries_information_beyond_attributes(mapped: Path, tmp_path: Path) -> None:
    chosen = settings(condition={"attributes": [], "map": "label", "map_width": 4}, **LONG)
    outcome = train_generator(chosen, mapped, tmp_path)
    assert outcome.metrics["cross_entropy"] < outcome.metrics["marginal"] - 0.5
    loaded = Generator.from_pretrained(tmp_path, "cpu")
    assert loaded.config.condition.map_channels == 3
    classes = torch.tensor([1, 2])[:, None, None, None].expand(2, 16, 16, 8)
    condition = Condition(attributes=torch.empty(2, 0), map=one_hot(classes, 3))
    assert min(matching_fractions(loaded, condition)) > 0.75


def test_a_source_is_translated(tmp_path: Path) -> None:
    """Tokens follow from the source alone; without it, both classes are drawn."""
    folder = write_tokens(tmp_path / "tokens", tiny_tokenizer(), noise=0.1, sources=True)
    chosen = settings(condition={"attributes": [], "map": "source", "map_width": 4}, **LONG)
    outcome = train_generator(chosen, folder, tmp_path / "run")
    assert outcome.metrics["cross_entropy"] < outcome.metrics["marginal"] - 0.5
    loaded = Generator.from_pretrained(tmp_path / "run", "cpu")
    assert (loaded.config.condition.map_channels, loaded.config.condition.source) == (2, SOURCE)
    given = torch.tensor(list(INTENSITIES.values()))[:, None, None, None].expand(2, 16, 16, 8)
    condition = Condition(attributes=torch.empty(2, 0), map=source_channels(given))
    assert min(matching_fractions(loaded, condition)) > 0.75
    with pytest.raises(MedarError, match=r"map of shape .* must be \(batch, 2, 16, 16, 8\)"):
        matching_fractions(loaded, replace(condition, map=given[:, None]))
    with pytest.raises(MedarError, match="'label', but there are source volumes"):
        train_generator(settings(condition={"map": "label"}), folder, tmp_path / "other")


def test_an_interrupted_run_resumes_bit_for_bit(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Including known boxes, revealed and replaced tokens, dropped conditions and dropout."""
    changes: dict[str, Any] = {
        "objective": {
            "known_box_fraction": 0.4,
            "known_scale_fraction": 0.2,
            "refinement_fraction": 0.5,
        },
        "model__dropout": 0.1,
        "condition__drop_probability": 0.5,
        "training__accumulation_steps": 2,
    }
    chosen = settings(**changes)
    plain = GeneratorTask.after_step

    def signalled(self: GeneratorTask, step: int) -> None:
        plain(self, step)
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(GeneratorTask, "after_step", signalled)
        train_generator(chosen, tokens, tmp_path / "a")
    assert train_generator(chosen, tokens, tmp_path / "a").step == 6
    train_generator(chosen, tokens, tmp_path / "b")
    actual, expected = lines(tmp_path / "a"), lines(tmp_path / "b")
    assert [line["train/loss"] for line in actual] == [line["train/loss"] for line in expected]
    for name, value in weights(tmp_path / "a").items():
        assert torch.equal(value, weights(tmp_path / "b")[name]), name
    with pytest.raises(
        MedarError, match=r"was made with task\.drop_probability 0\.5, now it is 0\.1"
    ):
        train_generator(
            settings(**{**changes, "condition__drop_probability": 0.1}), tokens, tmp_path / "a"
        )


class CoarseMean(Mixer):
    """A custom mixer that adds a linear map of the mean over all coarser tokens."""

    def __init__(
        self, settings: MixerSettings, width: int, heads: int, schedule: ScaleSchedule, layer: int
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.out = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, mixed = self.start(x), []
        for k, part in enumerate(self.schedule.split(x)):
            y, state = self.step(k, part, state)
            mixed.append(y)
        return torch.cat(mixed, dim=1)

    def start(self, like: torch.Tensor) -> State:
        return {"sum": like.new_zeros(len(like), 1, like.shape[-1])}

    def step(self, k: int, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        mean = state["sum"] / max(sum(self.schedule.tokens[:k]), 1)
        return self.out(x + mean), {"sum": state["sum"] + x.sum(1, keepdim=True)}

    @property
    def state_size(self) -> int:
        return self.out.in_features


def test_a_mixer_of_another_package_is_trained_saved_and_loaded(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MIXERS, "_registered", dict(MIXERS._registered))
    register_mixer("coarse_mean")(CoarseMean)
    chosen = settings(model__mixer={"kind": "coarse_mean"})
    train_generator(chosen, tokens, tmp_path)
    config = read_json(tmp_path / "model" / "config.json")
    assert config["imports"] == {"mixer": f"{__name__}:CoarseMean"}
    monkeypatch.delitem(MIXERS._registered, "coarse_mean")  # as in a new process
    loaded = Generator.from_pretrained(tmp_path, "cpu")
    assert type(loaded.blocks[0].mixer) is CoarseMean
    before, after = weights(tmp_path)["blocks.0.mixer.out.weight"], loaded.state_dict()
    assert torch.equal(before, after["blocks.0.mixer.out.weight"])
    condition = Condition(attributes=torch.zeros(2, 1))
    assert sample(loaded, condition, range(2), SamplingSettings()).tokens.shape == (2, 73)

    monkeypatch.delitem(MIXERS._registered, "coarse_mean")
    write_json(tmp_path / "model" / "config.json", {**config, "imports": {"mixer": "gone:Mixer"}})
    with pytest.raises(MedarError, match="mixer 'coarse_mean': gone:Mixer cannot be imported"):
        Generator.from_pretrained(tmp_path, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_equal_one(
    shard: bool, tokens: Path, tmp_path: Path, in_two_processes: Callable[..., list[str]]
) -> None:
    chosen = settings(**CERTAIN, training__learning_rate=1e-3, training__shard=shard)
    (tmp_path / "settings.json").write_text(json.dumps(to_dict(chosen)))
    script = Path(__file__).with_name("trainer.py")
    in_two_processes(script, tokens, tmp_path / "two", tmp_path / "settings.json")
    train_generator(chosen, tokens, tmp_path / "one")
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-4)


def test_previews_are_written_at_each_evaluation(tokens: Path, tmp_path: Path) -> None:
    shown: list[tuple[int, torch.Size]] = []

    def preview(step: int, volumes: torch.Tensor) -> None:
        shown.append((step, volumes.shape))

    train_generator(settings(data__previews=9), tokens, tmp_path / "a", preview=preview)
    assert shown == [(3, (4, 1, 16, 16, 8)), (6, (4, 1, 16, 16, 8))]  # four validation cases
    shown.clear()
    train_generator(settings(data__previews=0), tokens, tmp_path / "b", preview=preview)
    assert shown == []


def test_the_scan_path_is_printed_if_used(
    tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixer = {"kind": "mamba", "state_dim": 4, "chunk_size": 16}
    for name, chosen in (("mamba", settings(model__mixer=mixer)), ("none", settings())):
        train_generator(chosen, tokens, tmp_path / name)
        captured = capsys.readouterr().err
        assert ("state-space scan: plain torch in chunks (on cpu)" in captured) == (name == "mamba")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition": {"map": "label"}}, "no label maps beside the tokens; .* with --maps"),
        ({"condition": {"map": "source"}}, "'source', but there are no source volumes beside"),
        ({"tokens": {"degradation": {"noise": 0.1}}}, "but condition.map is 'none'; set it to"),
        ({"tokens": {"degradation": {}}}, "tokens.degradation: slice_thickness and noise are both"),
        ({"condition": {"attributes": ["clas"]}}, "did you mean 'class'"),
        ({"model": {"kind": "raster"}}, "unknown key 'model.kind'"),
        ({"model": {"mixer": {"kind": "atention"}}}, "model.mixer: unknown mixer 'atention'; did"),
        ({"model": {"depth": 0}}, "model.depth must be at least 1, got 0"),
        ({"model": {"head_width": 7}}, "model.head_width"),
        ({"model": {"mlp_ratio": math.nan}}, "model.mlp_ratio must be finite, got nan"),
        ({"model": {"mlp_ratio": 0.001}}, "mlp_ratio must be at least 0.00521"),
        ({"model": {"window": 8}}, "key 'model.window' has a new name: window_size"),
        ({"condition": {"map_width": 0}}, "condition.map_width must be at least 1, got 0"),
        (
            {"condition": {"drop_probability": -0.1}},
            "drop_probability must be at least 0",
        ),
        ({"data": {"batch_size": 0}}, "data.batch_size must be at least 1, got 0"),
        ({"objective": {"corrupted_token_fraction": 1.5}}, "fraction must be at most 1, got 1.5"),
        ({"objective": {"known_boxes": 0.1}}, "has a new name: known_box_fraction"),
        (
            {"objective": {"known_box_fraction": 0.6, "known_scale_fraction": 0.6}},
            "must sum to at most 1",
        ),
        ({"objective": {"refinement_fraction": 2}}, "refinement_fraction must be at most 1, got 2"),
        ({"tokens": {"variants": -1}}, "tokens.variants must be at least 0, got -1"),
    ],
)
def test_invalid_configurations_give_a_clear_error(
    changes: dict[str, Any], message: str, tokens: Path
) -> None:
    with pytest.raises(MedarError, match=message) as refused:
        make_task(settings(**changes), tokens)
    assert "\n" not in str(refused.value)


def test_both_splits_are_needed(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path, tiny_tokenizer(), cases=8)
    index = read_json(folder / "tokens.json")
    index["cases"] = [case for case in index["cases"] if case["split"] == "train"]
    write_json(folder / "tokens.json", index)
    with pytest.raises(MedarError, match="no case in split 'val'; available: train"):
        make_task(settings(), folder)


def test_another_tokenizer_beside_the_tokens(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path, tiny_tokenizer(), cases=8)
    other = tiny_tokenizer()
    torch.nn.init.ones_(other.decoder.head.weight)
    other.save_pretrained(folder / "tokenizer")
    with pytest.raises(MedarError, match=r"tokenizer: tokenizer .*, but the tokens were encoded"):
        make_task(settings(), folder)


def test_several_modalities_become_an_attribute_automatically(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path, tiny_tokenizer(), cases=8)
    task = make_task(settings(condition={}), folder)
    assert task.model.config.condition.attributes == ()
    index = read_json(folder / "tokens.json")
    index["cases"][0]["modality"] = "MR"
    write_json(folder / "tokens.json", index)
    (found,) = make_task(settings(condition={}), folder).model.config.condition.attributes
    assert (found.name, found.values) == ("modality", ("CT", "MR"))
    assert make_task(settings(), folder).model.config.condition.attributes[0].name == "class"
