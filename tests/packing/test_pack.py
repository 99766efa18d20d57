"""Packing: what the rounded weights keep, figures of the same weights, and refusals."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medar.errors import MedarError
from medar.files import read_json
from medar.generator.generator import Generator
from medar.model_box import Bundle, size_of
from medar.packing.pack import pack
from medar.packing.rounding import MAX_ERROR, round_weights
from medar.segmentation.segmenter import Segmenter
from medar.synthesis.synthesizer import Synthesizer
from medar.tokenizer.detail import DetailConfig, DetailDecoder
from medar.tokenizer.tokenizer import Tokenizer

from .conftest import CARD, Models

Pack = Callable[..., int]


@pytest.fixture
def repack(models: Models, bundle: Path, tmp_path: Path) -> Pack:
    """Pack the generator, the segmenter and the figures of the bundle again; keywords replace."""

    def run(**changes: Path) -> int:
        values = {
            "generator": models.generator,
            "segmenter": models.folder / "segmenter",
            "figures": bundle / "figures.json",
        }
        return pack(changes.pop("out", tmp_path / "small-noise"), CARD, **{**values, **changes})

    return run


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_bundle_holds_model_folders_card_and_figures(bundle: Path) -> None:
    folders = ("generator", "generator/tokenizer", "segmenter")
    kept = {f"{folder}/{name}" for folder in folders for name in ("config.json", "README.md")}
    assert kept | {"bundle.json", "README.md", "figures.json"} <= files(bundle).keys()
    assert not [name for name in files(bundle) if ".tmp-" in name]
    assert Bundle.load(bundle).licence == "CC0"


def test_large_tensors_are_stored_in_half_and_computed_in_float32(bundle: Path) -> None:
    stored = load_file(bundle / "generator" / "model.safetensors")
    assert {value.dtype for value in stored.values() if value.numel() >= 1024} == {torch.float16}
    assert {value.dtype for value in stored.values() if value.numel() < 1024} == {torch.float32}
    model = Generator.from_pretrained(bundle, "cpu")
    for name, value in stored.items():
        loaded = model.state_dict()[name]
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, value.float())


def test_files_shrink_by_nearly_half(models: Models, bundle: Path) -> None:
    size = sum(path.stat().st_size for path in models.folder.glob("generator/**/*.safetensors"))
    packed = sum(path.stat().st_size for path in bundle.glob("generator/**/*.safetensors"))
    assert packed < 0.7 * size


def test_digests_are_those_of_the_rounded_values(models: Models, bundle: Path) -> None:
    """The generator names its tokenizer's digest, which survives saving in float32."""
    loaded = Synthesizer.from_pretrained(bundle, "cpu")
    digest = loaded.tokenizer.digest
    assert digest != models.synthesizer.tokenizer.digest
    assert read_json(bundle / "generator" / "config.json")["tokenizer"] == digest
    copy = models.folder / "saved-again"
    loaded.tokenizer.save_pretrained(copy)
    assert Tokenizer.from_pretrained(copy, "cpu").digest == digest


def test_tensors_that_half_precision_would_spoil_stay(tmp_path: Path) -> None:
    """Values beyond its range, and values so small that they would lose their digits."""
    torch.manual_seed(0)
    ordinary = torch.randn(64, 32)
    tensors = {
        "ordinary": ordinary,
        "large": 1e6 * torch.rand(64, 32),
        "minute": 1e-8 * torch.rand(64, 32),
        "counts": torch.arange(2048),
        "short": torch.rand(8),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"config": "as before"})
    (tmp_path / "config.json").write_text("{}")
    error = round_weights(tmp_path)
    assert 0 < error <= MAX_ERROR
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(stored["ordinary"], ordinary.half())
    for name in ("large", "minute", "counts", "short"):
        assert torch.equal(stored[name], tensors[name])
        assert stored[name].dtype == tensors[name].dtype


def test_the_cost_of_rounding_is_measured(bundle: Path) -> None:
    cost = read_json(bundle / "figures.json")["rounding"]
    assert 0 < cost["weights"] <= MAX_ERROR
    assert abs(cost["psnr"] - cost["psnr_rounded"]) < 0.1
    assert 0 <= cost["tokens_changed"] < 0.2
    assert 0 < cost["divergence"] < 1e-3


def test_figures_name_floors_and_numbers_of_volumes(bundle: Path) -> None:
    figures = {row["name"]: row for row in read_json(bundle / "figures.json")["figures"]}
    similarity = figures["MS-SSIM of pairs of samples"]
    assert similarity["volumes"] == 3
    assert similarity["real"] is not None
    assert any(name.startswith("Frechet distance of samples, radiomics") for name in figures)
    assert figures["suspected copies of training volumes, by voxels"]["volumes"] == 3
    assert figures["Dice of the segmentation network, left"]["volumes"] == 2


def test_the_card_states_what_its_author_and_the_figures_say(bundle: Path) -> None:
    card = (bundle / "README.md").read_text()
    assert card.startswith("# Small noise\n")
    assert "medar synthesize small-noise out -n 8" in card
    stated = (CARD.makes, CARD.data, CARD.licence, CARD.split, *CARD.limits, CARD.citation)
    assert all(one in card for one in stated)
    rows = [line for line in card.splitlines() if line.startswith("| MS-SSIM of pairs")]
    value = read_json(bundle / "figures.json")["figures"]
    (similarity,) = (row["value"] for row in value if row["name"].startswith("MS-SSIM"))
    assert f"| {similarity:.4g} |" in rows[0]
    assert "{" not in card


def test_packing_again_with_the_figures_gives_the_same_bytes(bundle: Path, repack: Pack) -> None:
    out = bundle.parent.parent / "again" / "small-noise"
    assert repack(out=out) == size_of(out)
    assert files(out) == files(bundle)
    repack(out=out)
    assert files(out) == files(bundle)


def test_a_detail_decoder_that_was_trained_later_comes_along(
    models: Models, repack: Pack, bundle: Path, tmp_path: Path
) -> None:
    """It is stored in half precision too, and belongs to the rounded tokenizer."""
    exact = models.synthesizer.tokenizer
    torch.manual_seed(0)
    decoder = DetailDecoder(DetailConfig.for_network(exact.config.network, (8, 16), 2))
    exact.with_detail(decoder).save_pretrained(tmp_path / "detail" / "model")
    with pytest.raises(MedarError, match="measured on other weights"):
        repack(tokenizer=tmp_path / "detail")
    out = tmp_path / "small-noise"
    pack(
        out,
        CARD,
        generator=models.generator,
        tokenizer=tmp_path / "detail",
        data=models.data,
        samples=2,
    )
    loaded = Synthesizer.from_pretrained(out, "cpu").tokenizer
    assert loaded.digest == Tokenizer.from_pretrained(bundle, "cpu").digest
    assert loaded.detail is not None
    stored = load_file(out / "generator" / "tokenizer" / "detail" / "model.safetensors")
    assert torch.float16 in {value.dtype for value in stored.values()}
    assert all(torch.equal(v.float(), loaded.detail.state_dict()[n]) for n, v in stored.items())
    named = b"".join(data for name, data in files(out).items() if name.endswith((".json", ".md")))
    assert exact.digest.encode() not in named
    assert "detail decoder: " in (out / "README.md").read_text()


def test_another_tokenizer_is_refused(models: Models, repack: Pack, tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.synthesizer.tokenizer.config, models.plan)
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(MedarError, match="but the generator was trained with"):
        repack(tokenizer=tmp_path / "other")
    assert not (tmp_path / "small-noise").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_figures_of_other_weights_are_refused(repack: Pack, models: Models, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = Segmenter(models.segmenter.settings, models.plan)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(MedarError, match=r"figures.json: measured on other weights"):
        repack(segmenter=tmp_path / "other")


def test_other_files_are_not_replaced(repack: Pack, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(MedarError, match="holds other files than a bundle"):
        repack(out=tmp_path)


def test_data_or_figures_are_needed(models: Models, tmp_path: Path) -> None:
    with pytest.raises(MedarError, match="give either data"):
        pack(tmp_path / "out", CARD, generator=models.generator)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("MAX_BYTES", "a model in the box must have at most 0 MB"),
        ("MAX_BYTES_TOGETHER", "all models in the box together must have at most 0 MB"),
    ],
)
def test_the_box_has_limits(
    limit: str, message: str, box: Path, repack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(box / "small-noise")
    monkeypatch.setattr(f"medar.packing.pack.{limit}", 1000)
    with pytest.raises(MedarError, match=message):
        repack(out=box / "small-noise")
    assert files(box / "small-noise") == before


def test_networks_judge_the_samples_if_asked(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medar.evaluation.generation.discriminator.STEPS", 3)
    out = tmp_path / "judged"
    pack(out, CARD, generator=models.generator, data=models.data, samples=4, turing=True)
    figures = read_json(out / "figures.json")["figures"]
    (row,) = (row for row in figures if row["name"].startswith("AUC of networks"))
    assert 0 <= row["value"] <= 1
    assert row["volumes"] == 4
