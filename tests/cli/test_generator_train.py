"""`medar generator train` from the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from medar.data.plan import IntensityRule, Plan
from medar.data.source import Degradation, Source
from medar.synthesis import Synthesizer
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.network import NetworkConfig
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer, TokenizerConfig
from medar.tokenizer.tokens import TokenDataset

torch.set_num_threads(1)

Medar = Callable[..., Any]

CONFIG: dict[str, Any] = {
    "model": {"depth": 1, "head_width": 8},
    "tokens": {"variants": 1},
    "data": {"batch_size": 2, "previews": 2},
    "training": {
        "steps": 2, "precision": "fp32", "device": "cpu", "log_every": 1, "evaluate_every": 1,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare in this process."""
    monkeypatch.setattr("medar.data.prepare.default_workers", lambda: 1)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """The folder of a tiny tokenizer."""
    plan = Plan(
        spacing=(1.0, 1.0, 2.0),
        mode="volume",
        size=(8, 8, 4),
        downsampling=(2, 2, 2),
        intensity={"CT": IntensityRule(kind="window", low=0.0, high=200.0)},
        labels={1: "a", 2: "b"},
    )
    torch.manual_seed(0)
    config = TokenizerConfig(
        schedule=ScaleSchedule(grids=((1, 1, 1), (4, 4, 2))),
        network=NetworkConfig(
            width=4, width_multipliers=(1,), code_width=4, downsampling=(2, 2, 2)
        ),
        codebook=CodebookSettings(kind="fsq", size=16, width=4),
    )
    Tokenizer(config, plan).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def split(data: Path) -> Path:
    """The four images of `data` with a table of splits."""
    rows = [("c0", "train"), ("c1", "train"), ("c2", "val"), ("c3", "test")]
    table = "id,split,side\n" + "".join(f"{a},{b},{'lr'[int(a[1]) % 2]}\n" for a, b in rows)
    (data / "attributes.csv").write_text(table)
    return data


@pytest.fixture
def tokens(medar: Medar, split: Path, tokenizer: Path, tmp_path: Path) -> Path:
    """The data set of `split`, encoded to tokens."""
    out = tmp_path / "tokens"
    assert medar("tokenizer", "encode", split, out, "--model", tokenizer).code == 0
    return out


def train(medar: Medar, config: Path, data: Path, out: Path, *more: object) -> Any:
    return medar("generator", "train", config, "--data", data, "--out", out, "--untracked", *more)


def test_a_generator_is_trained_on_tokens(
    medar: Medar, config: Path, tokens: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = train(medar, config, tokens, out, "--json", "condition.attributes=[side]")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert set(found) == {"out", "model", "step", "seconds", "best", "best_step", "metrics"}
    assert found["step"] == 2
    metrics = ("cross_entropy", "accuracy", "marginal", "chain", "independence")
    names = {f"{name}{scale}" for name in metrics for scale in ("", "/scale_0", "/scale_1")}
    assert set(found["metrics"]) == names
    assert found["best"] <= found["metrics"]["cross_entropy"]
    (attribute,) = Synthesizer.from_pretrained(out, "cpu").model.config.condition.attributes
    assert (attribute.name, attribute.values) == ("side", ("l", "r"))
    assert (out / "config.yaml").exists()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    pictures = [path.name for path in sorted((out / "samples").iterdir())]
    assert pictures == ["step_000001.png", "step_000002.png"]
    assert (out / "samples" / "step_000002.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "tokens").exists()
    again = train(medar, config, tokens, out, "--condition.attributes", "[side]")
    assert again.code == 0
    assert "already finished at step 2" in again.err
    assert "model" in again.out
    made = medar("synthesize", out, tmp_path / "made", "-n", 1, "--device", "cpu")
    assert made.code == 0, made.err


@pytest.mark.parametrize("prepared", [True, False])
def test_a_data_set_is_encoded_before_training(
    prepared: bool, medar: Medar, config: Path, split: Path, tokenizer: Path, tmp_path: Path
) -> None:
    data, out = split, tmp_path / "run"
    if prepared:
        data = tmp_path / "prepared"
        plan = tmp_path / "plan.yaml"
        plan.write_text((tokenizer / "preprocess.json").read_text())
        done = medar("data", "prepare", split, "--out", data, "--plan", plan, "--modality", "CT")
        assert done.code == 0, done.err
    result = train(medar, config, data, out, "--tokenizer", tokenizer, "condition.map=label")
    assert result.code == 0, result.err
    found = TokenDataset(out / "tokens", maps=True)
    assert found.about.variants == 1
    assert found.about.maps == {1: "a", 2: "b"}
    assert (out / "tokens" / "prepared").exists() == (not prepared)
    assert Synthesizer.from_pretrained(out, "cpu").model.config.condition.map_channels == 3
    before = {path: path.stat().st_mtime_ns for path in (out / "tokens" / "cases").iterdir()}
    more = train(medar, config, data, out, "--tokenizer", tokenizer, "condition.map=label")
    assert "already finished at step 2" in more.err
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_data_set_of_sources_is_encoded_with_it(
    medar: Medar, config: Path, split: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """The images themselves as their own sources."""
    out = tmp_path / "run"
    words = ("--tokenizer", tokenizer, "condition.map=source")
    assert "give a data set with --source" in train(medar, config, split, out, *words).refusal
    result = train(medar, config, split, out, *words, "--source", split / "images")
    assert result.code == 0, result.err
    source = Synthesizer.from_pretrained(out, "cpu").model.config.condition.source
    assert source is not None
    assert (source.modality, source.degradation) == (None, None)
    plain = train(medar, config, split, out, "--tokenizer", tokenizer, "--source", split)
    assert "condition.map is 'none'; set it to 'source'" in plain.refusal
    words = ("condition.map=source", "--source", split)
    assert "already holds tokens; give the source to" in (
        train(medar, config, out / "tokens", out, *words).refusal
    )


def test_a_degraded_volume_is_its_own_source(
    medar: Medar, config: Path, split: Path, tokenizer: Path, tmp_path: Path
) -> None:
    words = ("--tokenizer", tokenizer, "condition.map=source")
    noise = "tokens.degradation.noise=0.2"
    result = train(medar, config, split, tmp_path / "run", *words, noise)
    assert result.code == 0, result.err
    source = Synthesizer.from_pretrained(tmp_path / "run", "cpu").model.config.condition.source
    assert source == Source(degradation=Degradation(noise=0.2))
    text = tmp_path / "low.yaml"
    text.write_text("noise: 0.2")
    call = ("tokenizer", "encode", split, tmp_path / "tokens", "--model", tokenizer)
    assert "sources: the volume itself, with noise of 0.2" in (
        medar(*call, "--degradation", text).err
    )
    assert TokenDataset(tmp_path / "tokens").about.source == source
    assert "exclude each other" in medar(*call, "--degradation", text, "--maps").refusal


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokenizer", "tokenizer"], "already holds tokens and their tokenizer; leave it out"),
        (["training.stepz=3"], "did you mean 'steps'"),
        (["model.kind=gan"], "unknown key 'model.kind'"),
        (["model.mixer.kind=mambo"], "did you mean 'mamba'"),
        (["condition.map=label"], "no label maps beside the tokens"),
        (["condition.attributes=[sides]"], "did you mean 'side'"),
        (["model.head_width=7"], "model.head_width"),
        (["--max-minutes", "0"], "minutes must be greater than 0"),
        (["--stepz", "3"], "unknown option --stepz"),
        (["--max-minuts", "3"], "unknown option --max-minuts; did you mean '--max-minutes'?"),
    ],
)
def test_invalid_arguments_give_one_line(
    words: list[str], message: str, medar: Medar, config: Path, tokens: Path, tmp_path: Path
) -> None:
    refused = train(medar, config, tokens, tmp_path / "run", *words)
    assert message in refused.refusal
    assert not (tmp_path / "run" / "model").exists()


def test_data_without_tokens_need_a_tokenizer(
    medar: Medar,
    config: Path,
    split: Path,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    assert "give the tokenizer with --tokenizer" in train(medar, config, split, out).refusal
    refused = train(medar, config, split, out, "--tokenizer", tmp_path / "none")
    assert "none: no tokenizer" in refused.refusal
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = train(medar, config, split, out, "--tokenizer", tokenizer)
    assert "with several processes, run `medar tokenizer encode` first" in refused.refusal


def test_a_run_needs_a_folder(medar: Medar, config: Path, tokens: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert (
        "run: is a file; --out names a folder"
        in train(medar, config, tokens, tmp_path / "run").refusal
    )


def test_a_missing_config_is_refused(medar: Medar, tokens: Path, tmp_path: Path) -> None:
    refused = train(medar, tmp_path / "no.yaml", tokens, tmp_path / "run")
    assert "no.yaml: no such file" in refused.refusal


def test_an_interrupted_encoding_prints_how_to_resume(
    medar: Medar,
    config: Path,
    split: Path,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medar.tokenizer.encoding.encode_data_set", interrupted)
    result = train(medar, config, split, tmp_path / "run", "--tokenizer", tokenizer)
    assert result.code == 130
    assert result.err == "medar: interrupted: run the same command again to continue\n"
