"""`medar models`, and names on the command line."""

import json
from pathlib import Path

import pytest
import yaml

from medar.cli.main import main
from medar.packing.card import CardSettings
from medar.settings import load_yaml, to_dict

from .conftest import CARD, Models

CARDS = Path(__file__).resolve().parents[2] / "pipelines" / "cards"

CT = ("--modality", "CT")

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


@pytest.mark.usefixtures("box")
def test_models_are_listed_with_size_licence_and_figures(capsys: Capture) -> None:
    code, out, _ = run(capsys, "models")
    assert code == 0
    assert out.startswith("small-noise\n")
    assert all(part in out for part in (CARD.makes, CARD.licence, "Frechet distance", " MB\n"))
    _, out, _ = run(capsys, "models", "list", "--json")
    (model,) = json.loads(out)["models"]
    assert model["name"] == "small-noise"
    assert model["bytes"] > 10_000


def test_an_empty_box_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("medar.model_box.box_folder", lambda: tmp_path)
    assert run(capsys, "models")[1] == "this installation has no models\n"
    code, out, err = run(capsys, "models", "show", "small-noise")
    assert (code, out) == (2, "")
    assert "small-noise: not a model that comes with medar" in err


def test_the_card_is_printed(box: Path, capsys: Capture) -> None:
    card = (box / "small-noise" / "README.md").read_text()
    assert run(capsys, "models", "show", "small-noise") == (0, card, "")


def test_an_exported_model_is_one_to_work_with(box: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "mine"
    assert run(capsys, "models", "export", "small-noise", out)[:2] == (0, f"{out}\n")
    names = {path.relative_to(out) for path in out.rglob("*")}
    assert names == {
        path.relative_to(box / "small-noise") for path in box.rglob("small-noise/**/*")
    }
    assert run(capsys, "synthesize", out, tmp_path / "samples")[0] == 0
    code, _, err = run(capsys, "models", "export", "small-noise", out)
    assert code == 2
    assert err == f"medar: {out}: must be a new or an empty folder\n"


@pytest.mark.usefixtures("box")
def test_commands_take_a_name(tmp_path: Path, capsys: Capture, models: Models) -> None:
    scan = models.folder / "c0.nii.gz"
    for words in (
        ("synthesize", "small-noise", tmp_path / "samples", "-n", 2),
        ("tokenizer", "reconstruct", "small-noise", scan, tmp_path / "r.nii.gz", *CT),
        ("segment", "small-noise", scan, tmp_path / "labels.nii.gz", *CT),
        ("evaluate", "generation", "small-noise", models.data, "--samples", 2),
        ("tokenizer", "encode", models.data, tmp_path / "tokens", "--model", "small-noise"),
    ):
        code, _, err = run(capsys, *words)
        assert code == 0, (words, err)
    assert len(list((tmp_path / "samples").glob("sample_*.nii.gz"))) == 2


def test_a_bundle_is_packed_by_one_command(
    bundle: Path, models: Models, tmp_path: Path, capsys: Capture
) -> None:
    card = tmp_path / "card.yaml"
    card.write_text(yaml.safe_dump(to_dict(CARD)))
    out = tmp_path / "small-noise"
    words = ["models", "pack", out, "--card", card, "--generator", models.generator]
    words += ["--segmenter", models.folder / "segmenter"]
    code, printed, err = run(capsys, *words, "--figures", bundle / "figures.json")
    assert code == 0, err
    assert printed.startswith(f"{out}: 0.")
    assert (out / "README.md").read_bytes() == (bundle / "README.md").read_bytes()
    assert "give either data" in run(capsys, *words)[2]


def test_the_cards_of_the_box_are_complete() -> None:
    cards = {path.stem: load_yaml(CardSettings, path) for path in CARDS.glob("*.yaml")}
    assert {"hippocampus-mr", "headneck-ct"} <= cards.keys()
    assert all(card.limits and card.licence and card.citation for card in cards.values())
    assert "CC-BY-SA 4.0" in cards["hippocampus-mr"].licence
    assert "research use only" in cards["headneck-ct"].licence
