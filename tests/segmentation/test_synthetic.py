"""Synthetic pairs of a generator as training cases, at a configured fraction."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_segmenters import make_plan, make_settings, smooth

from medar.data.prepared import Prepared
from medar.errors import MedarError
from medar.generator.generator import Generator
from medar.generator.settings import GeneratorConfig, ModelSettings
from medar.segmentation.data import AnnotatedDataset, MixedDataset, add_synthetic, prepare_synthetic
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.settings import DataSettings, SegmentationSettings, SyntheticSettings
from medar.segmentation.training import make_task, train_segmenter
from medar.segmentation.training_range import TrainingRange
from medar.synthesis.request import Request
from medar.synthesis.samples import write_samples
from medar.synthesis.synthesizer import Synthesizer
from medar.tokenizer.codebooks.base import CodebookSettings
from medar.tokenizer.network import NetworkConfig
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer, TokenizerConfig
from medar.volume import Volume, write_nifti


def pair(folder: Path, number: int, value: int = 3, *, label: bool = True) -> None:
    """A volume on the plan's grid and its label map, named as by `medar synthesize`."""
    image = smooth(16, 12, 8, seed=100 + number) * 1000
    stem = f"sample_{number:04d}"
    write_nifti(folder / f"{stem}.nii.gz", Volume.from_array(image, np.eye(4)))
    if label:
        organ = np.where(image > 200, value, 0).astype(np.uint8)
        write_nifti(folder / f"{stem}_label.nii.gz", Volume.from_array(organ, np.eye(4)))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for number in range(3):
        pair(folder, number)
    return folder


def mixed(prepared: Path, pairs: Path, out: Path, fraction: float) -> MixedDataset:
    settings = DataSettings(
        label_fraction=0.5,
        augmentation=None,
        synthetic=SyntheticSettings(folder=str(pairs), fraction=fraction),
    )
    return add_synthetic(AnnotatedDataset(prepared, settings), settings, out, workers=1)


def settings_with(pairs: Path, fraction: float, **changes: object) -> SegmentationSettings:
    return make_settings(data__synthetic={"folder": str(pairs), "fraction": fraction}, **changes)


@pytest.mark.parametrize("fraction", [1e-6, 0.1, 1 / 3, 0.5, 0.75, 1.0])
def test_the_synthetic_fraction_holds_over_a_run(
    fraction: float, prepared: Path, pairs: Path, tmp_path: Path
) -> None:
    data = mixed(prepared, pairs, tmp_path, fraction)
    real = [data.real.base.prepared[position].id for position in data.real.indices]
    made = [data.synthetic.prepared[position].id for position in range(3)]
    seen: list[tuple[bool, int]] = []
    data.real.draw = lambda number, _: seen.append((False, number % len(real)))  # type: ignore
    data.synthetic.draw = lambda position, _: seen.append((True, position))  # type: ignore
    epochs = 24
    for epoch in range(epochs):
        data.set_epoch(epoch)
        for index in range(len(data)):
            data[index]
    assert len(data) == len(data.real) == 5
    synthetic = [position for is_made, position in seen if is_made]
    others = [position for is_made, position in seen if not is_made]
    assert abs(len(synthetic) - fraction * epochs * 5) < 1
    for indices, ids in ((synthetic, made), (others, real)):
        assert indices == [n % len(ids) for n in range(len(indices))], "each in its turn"


def test_real_and_synthetic_items_have_the_same_form(
    prepared: Path, pairs: Path, tmp_path: Path
) -> None:
    data = mixed(prepared, pairs, tmp_path, 0.5)
    first, second = data[0], data[1]
    whole = Prepared(tmp_path)
    assert torch.equal(second["image"], torch.from_numpy(whole.image(whole[0])))
    assert first.keys() == second.keys()
    assert all(first[name].shape == second[name].shape for name in ("image", "label", "annotated"))
    assert first["label"].dtype == second["label"].dtype
    assert set(second["label"].unique().tolist()) == {0, 3}
    assert second["annotated"].all()


def test_generated_volumes_train_a_network(prepared: Path, tmp_path: Path) -> None:
    plan = make_plan()
    torch.manual_seed(0)
    tokenizer = Tokenizer(
        TokenizerConfig(
            schedule=ScaleSchedule(grids=((1, 1, 1), (4, 3, 2))),
            network=NetworkConfig(
                width=4, width_multipliers=(1,), code_width=4, downsampling=(4, 4, 4), labels=2
            ),
            codebook=CodebookSettings(kind="fsq", size=16, width=4),
        ),
        plan,
    ).eval()
    config = GeneratorConfig(model=ModelSettings(depth=1, head_width=8))
    model = Generator.for_tokenizer(config, tokenizer)
    synthesizer = Synthesizer(model, tokenizer)
    write_samples(tmp_path / "pairs", synthesizer, synthesizer.job(Request()), range(2))
    settings = settings_with(tmp_path / "pairs", 1.0, training__ema_decay=0.0)
    train_segmenter(settings, prepared, tmp_path / "run", workers=1)
    made = Prepared(tmp_path / "run" / "synthetic")
    assert len(made) == 2
    assert Segmenter.from_pretrained(
        tmp_path / "run", "cpu"
    ).training_range == TrainingRange.measure(made, [0, 1])
    assert Segmenter.from_pretrained(tmp_path / "run", "cpu").plan.labels == plan.labels


def test_a_resumed_run_ends_with_the_same_weights(
    prepared: Path, pairs: Path, tmp_path: Path
) -> None:
    def run(name: str, steps: int, resume: object = "auto") -> dict[str, torch.Tensor]:
        chosen = settings_with(pairs, 0.5, training__steps=steps, training__learning_rate=0.01)
        training = replace(chosen.training, warmup_fraction=0.0, min_learning_rate=0.01)
        chosen = replace(chosen, training=training)
        train_segmenter(chosen, prepared, tmp_path / name, resume=resume, workers=1)  # type: ignore
        return Segmenter.from_pretrained(tmp_path / name).state_dict()

    whole = run("whole", 7)
    run("parts", 3)
    (last,) = (tmp_path / "parts" / "checkpoints").glob("*3*")
    again = run("parts", 7, last)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_changed_synthetic_data_or_fraction_is_another_run(
    prepared: Path, pairs: Path, tmp_path: Path
) -> None:
    train_segmenter(settings_with(pairs, 0.5), prepared, tmp_path / "run", workers=1)
    for other in (settings_with(pairs, 0.25), make_settings()):
        with pytest.raises(MedarError, match=r"task\.data"):
            train_segmenter(other, prepared, tmp_path / "run", workers=1)
    more = tmp_path / "more"
    more.mkdir()
    for number in range(4):
        pair(more, number)
    with pytest.raises(MedarError, match=r"task\.data"):
        train_segmenter(settings_with(more, 0.5), prepared, tmp_path / "run", workers=1)
    # The same pairs elsewhere, prepared or not, are the same run.
    train_segmenter(settings_with(pairs, 0.5), prepared, tmp_path / "run", workers=1)
    there = prepare_synthetic(pairs, make_plan(), tmp_path / "prepared", workers=1)
    first = make_task(
        settings_with(pairs, 0.5), prepared, synthetic_folder=tmp_path / "a", workers=1
    ).describe()
    second = make_task(
        settings_with(there, 0.5), prepared, synthetic_folder=tmp_path / "b"
    ).describe()
    assert (
        first["data"]["train"] != make_task(make_settings(), prepared).describe()["data"]["train"]
    )
    assert not (tmp_path / "b").exists()
    assert first == second


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no volume found"),
        (lambda folder: pair(folder, 7, label=False), "sample_0007 has no label map"),
        (
            lambda folder: pair(folder, 7, value=5),
            "label values 5 are not among the plan's 0, 3, 7",
        ),
        (
            lambda folder: (pair(folder, 6), pair(folder, 7, value=5)),
            "sample_0007 cannot be used: label values 5",
        ),
    ],
)
def test_unusable_pairs_are_refused(
    make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    (tmp_path / "pairs").mkdir()
    make(tmp_path / "pairs")
    with pytest.raises(MedarError, match=message) as error:
        prepare_synthetic(tmp_path / "pairs", make_plan(), tmp_path / "out", workers=1)
    assert str(tmp_path / "pairs") in str(error.value)
    assert "\n" not in str(error.value)


def test_pairs_with_another_plan_are_refused(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = prepare_synthetic(
        pairs, make_plan(spacing=(2.0, 2.0, 2.0)), tmp_path / "there", workers=1
    )
    with pytest.raises(MedarError, match="prepared with spacing"):
        prepare_synthetic(there, make_plan(), tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(MedarError, match="with several processes, run `medar data prepare"):
        prepare_synthetic(pairs, make_plan(), tmp_path / "out")
    for fraction in (0.0, 1.5):
        with pytest.raises(MedarError, match="fraction must be"):
            SyntheticSettings(folder="pairs", fraction=fraction)
