"""Recipes without a configuration: what is chosen from data, machine and minutes."""

import json
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml

from medar.cli.main import main
from medar.data.phantoms import write_phantoms
from medar.data.planning import check_values
from medar.errors import MedarError
from medar.recipes.automatic import STEPS, Data, Machine, measure
from medar.recipes.automatic_segmentation import choose_segmentation
from medar.recipes.automatic_synthesis import DETAIL_MINUTES, SHORT_MINUTES, choose_synthesis
from medar.recipes.chosen import chosen_settings
from medar.recipes.cost import tokenizer_cost
from medar.recipes.settings import DataSettings, SynthesisSettings
from medar.tokenizer.network import Decoder, Encoder

SLOW = Machine(device="cpu", cores=2, memory=4 * 10**9, speed=1e11)
LAPTOP = Machine(device="cpu", cores=8, memory=16 * 10**9, speed=1e12)
CARD = Machine(device="cuda", cores=16, memory=80 * 10**9, speed=4e14)
SMALL_CARD = Machine(device="cuda", cores=16, memory=6 * 10**9, speed=5e13)

SHAPES = {
    "tiny": ((5, 6, 7), (1.0, 1.0, 1.0)),
    "cube": ((40, 40, 40), (1.0, 1.0, 1.0)),
    "thin": ((48, 48, 3), (1.0, 1.0, 8.0)),
    "long": ((8, 8, 90), (2.0, 2.0, 1.0)),
    "fine": ((64, 60, 30), (0.1, 0.1, 0.2)),
}


def volumes(folder: Path, kind: str, n: int = 5, *, low: float = 0.0) -> DataSettings:
    """A folder of labelled noise; shapes differ a little."""
    shape, spacing = SHAPES[kind]
    random = np.random.default_rng(0)
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for index in range(n):
        sides = [side + index % 2 for side in shape]
        values = random.normal(100, 50, sides).astype(np.float32)
        values[: shape[0] // 3] += low
        labels = (values > 120).astype(np.uint8)
        for name, array in (("images", values), ("labels", labels)):
            image = nibabel.Nifti1Image(array, np.diag([*spacing, 1.0]))
            nibabel.save(image, folder / f"{name}Tr" / f"case_{index}.nii.gz")
    return DataSettings(path=folder, workers=1)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Data]:
    """Measured data sets by kind."""
    found: dict[str, Data] = {}

    def get(kind: str) -> Data:
        if kind not in found:
            folder = tmp_path_factory.mktemp("sets") / kind
            if kind in SHAPES:
                found[kind] = measure(volumes(folder, kind))
            else:
                write_phantoms(folder, n=6, spacing=16.0, modality=kind)  # type: ignore[arg-type]
                found[kind] = measure(DataSettings(path=folder, workers=1))
        return found[kind]

    return get


@pytest.mark.parametrize(
    ("kind", "machine", "minutes"),
    [
        ("tiny", SLOW, 0.5), ("cube", LAPTOP, 20.0), ("thin", CARD, 20.0), ("long", SLOW, 20.0),
        ("fine", SMALL_CARD, 0.5), ("ct", LAPTOP, 5.0), ("mr", SMALL_CARD, 20.0),
    ],
)  # fmt: skip
def test_every_data_set_gets_settings_that_its_networks_can_be_built_from(
    sets: Callable[[str], Data], kind: str, machine: Machine, minutes: float
) -> None:
    data = sets(kind)
    chosen, lines = choose_synthesis(data, machine, minutes)
    assert len(lines) == 5
    plan = check_values(chosen.plan, None)
    config = chosen.tokenizer.model.config(plan)
    assert min(plan.size) >= 8, "the evaluation needs it"
    with torch.device("meta"):
        latent = Encoder(config.network)(torch.empty(1, 1, *plan.size))
        assert Decoder(config.network)(latent).volume.shape[2:] == plan.size
    assert latent.shape[2:] == config.schedule.latent
    assert (chosen.detail is None) == (minutes < DETAIL_MINUTES)
    if chosen.detail is not None:
        narrow = chosen.detail.model.widths[0] < 3 * 2**3
        assert narrow == (chosen.detail.model.prediction == "residual") == (minutes < SHORT_MINUTES)
    assert chosen.max_minutes == minutes
    other, lines = choose_segmentation(data, machine, minutes)
    assert len(lines) == 5
    assert other.pretrain is None
    check_values(other.plan, None)


def many(data: Data, times: int = 100) -> Data:
    """The same data set with more training cases."""
    first = next(case for case in data.manifest if case.split == "train")
    more = tuple(replace(first, id=f"m{k}", subject=f"m{k}") for k in range(times))
    return data._replace(manifest=replace(data.manifest, cases=(*data.manifest, *more)))


def test_more_time_and_a_faster_machine_give_larger_models(sets: Callable[[str], Data]) -> None:
    data = many(sets("cube"))
    widths = [choose_synthesis(data, LAPTOP, m)[0].tokenizer.model.width for m in (1, 1000)]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]
    slow, fast = (choose_synthesis(data, one, 20.0)[0].generator for one in (SLOW, CARD))
    assert slow.model.depth < fast.model.depth


def test_few_volumes_get_small_networks(sets: Callable[[str], Data]) -> None:
    few, more, most = (
        choose_synthesis(data, CARD, 1000.0)[0].generator.model.depth
        for data in (sets("cube"), many(sets("cube")), many(sets("cube"), 300))
    )
    assert (few, more, most) == (3, 4, 16)


def test_a_chosen_size_has_enough_steps_or_is_the_smallest(sets: Callable[[str], Data]) -> None:
    for minutes in (0.1, 10.0):
        chosen, lines = choose_synthesis(sets("cube"), SLOW, minutes)
        steps = int(lines[2].split("about ")[1].split(" steps")[0].replace(",", ""))
        assert steps >= STEPS or chosen.generator.model.depth == 3


def test_a_step_fits_into_the_memory(sets: Callable[[str], Data]) -> None:
    data = many(sets("cube"), 300)
    tight = Machine(device="cpu", cores=2, memory=300_000_000, speed=1e15)
    chosen, _ = choose_synthesis(data, tight, 1000.0)
    plan = check_values(chosen.plan, None)
    cost = tokenizer_cost(chosen.tokenizer, plan, "cpu")
    assert cost.bytes(chosen.tokenizer.data.batch_size) <= tight.memory
    roomy, _ = choose_synthesis(data, CARD, 1000.0)
    assert roomy.tokenizer.model.width > chosen.tokenizer.model.width


def test_volumes_cover_most_cases_and_patches_are_cut_where_volumes_are_large(
    tmp_path: Path,
) -> None:
    data = measure(volumes(tmp_path / "large", "cube", 3))
    chosen, _ = choose_synthesis(data, SLOW, 1.0)
    sides = [n * s for n, s in zip(chosen.plan["size"], chosen.plan["spacing"], strict=True)]
    assert all(side >= 36 for side in sides)
    assert prod(chosen.plan["size"]) <= 45_000
    assert chosen.plan["mode"] == "volume"


def test_volumes_without_a_modality_that_look_like_ct_are_taken_as_ct(tmp_path: Path) -> None:
    data = measure(volumes(tmp_path / "ct", "cube", 3, low=-1000.0))
    assert data.settings.modality == "CT"
    assert "values below -500 are taken as CT" in data.notes[1]
    assert measure(volumes(tmp_path / "mr", "cube", 3)).settings.modality is None


def test_a_part_of_a_large_data_set_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medar.recipes.automatic.MEASURED", 2)
    data = measure(volumes(tmp_path / "set", "tiny", 5))
    assert len(data.fingerprint.cases) == 2
    assert data.notes == ("2 of 5 volumes measured",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["sampels.n=3"], "unknown key 'sampels'; did you mean 'samples'"),
        (["samples.n=1"], "samples: n must be at least 2, got 1"),
    ],
)
def test_wrong_overrides_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: list[str], message: str
) -> None:
    monkeypatch.setattr("medar.recipes.automatic.this_machine", lambda: SLOW)
    data = volumes(tmp_path / "set", "tiny")
    with pytest.raises(MedarError, match=message):
        chosen_settings(SynthesisSettings, data, 1.0, changes)


def test_several_processes_need_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(MedarError, match="run the command once without torchrun"):
        chosen_settings(SynthesisSettings, DataSettings(), 1.0)


def medar(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    return int(ended.value.code or 0)


def test_the_choice_is_printed_written_and_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medar.recipes.automatic.this_machine", lambda: SLOW)
    data, out = volumes(tmp_path / "set", "tiny", 6).path, tmp_path / "out"
    words = ("run", "synthesis", "--data", data, "--out", out, "--untracked", "--minutes", 3)
    assert medar(*words, "--dry-run") == 0
    assert capsys.readouterr().err.count("medar: ") == 5
    assert not (out / "config.yaml").exists()

    assert medar("run", "synthesis", "samples.n=7", *words[2:], "--until", "prepare") == 0
    printed = capsys.readouterr().err
    assert "no configuration: chosen from the data (6 of 6 volumes measured)" in printed
    assert f"all settings are in {out}/config.yaml: edit it" in printed
    written: dict[str, Any] = yaml.safe_load((out / "config.yaml").read_text())
    assert (written["max_minutes"], written["samples"]["n"]) == (3, 7)

    written["samples"]["n"] = 9
    (out / "config.yaml").write_text(yaml.safe_dump(written))
    assert medar("run", "synthesis", "--out", out, "--untracked", "--until", "prepare") == 0
    printed = capsys.readouterr().err
    assert f"settings of {out}/config.yaml" in printed
    assert "prepare: skip (done, nothing has changed)" in printed
    assert yaml.safe_load((out / "config.yaml").read_text())["samples"]["n"] == 9


def test_without_data_there_is_nothing_to_choose_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert medar("run", "segmentation", "--out", tmp_path / "out") == 2
    assert "no data set: name one with --data" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*its codebook has collapsed")  # it has seconds to train
def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of segmentation; that of synthesis is a journey."""
    data = volumes(tmp_path / "set", "cube", 12).path
    words = ("run", "segmentation", "--data", data, "--out", tmp_path / "out", "--minutes", 0.15)
    assert medar(*words, "--untracked", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert all(stage["status"] == "done" for stage in answer["stages"].values())
    assert answer["verdict"]["grade"] in ("good", "rough", "poor")
