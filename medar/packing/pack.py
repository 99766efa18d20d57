"""`pack`: from the runs of a training to a bundle, complete or not at all."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from medar.errors import MedarError
from medar.files import TEMPORARY, TRACKED, atomic_folder, read_json_object, write_json, write_text
from medar.generator.generator import QUANTISER, Generator
from medar.model_box import (
    CARD,
    FIGURES,
    GENERATOR,
    MAX_BYTES,
    MAX_BYTES_TOGETHER,
    PARTS,
    SEGMENTER,
    TOKENIZER,
    Bundle,
    box_folder,
    box_names,
    is_bundle,
    size_of,
)
from medar.model_folder import CONFIG, find_model, record_digest
from medar.packing.card import CardSettings, render_card
from medar.packing.figures import Split, digests, measure
from medar.packing.rounding import round_weights, rounding_cost
from medar.segmentation.segmenter import Segmenter
from medar.settings import plain
from medar.synthesis.synthesizer import Synthesizer
from medar.tokenizer.tokenizer import Tokenizer
from medar.version import __version__


def pack(
    out: Path,
    card: CardSettings,
    *,
    generator: Path,
    tokenizer: Path | None = None,
    segmenter: Path | None = None,
    data: Path | None = None,
    figures: Path | None = None,
    split: Split = "test",
    samples: int = 100,
    seed: int = 0,
    turing: bool = False,
) -> int:
    """Write a bundle: weights rounded to float16, figures measured on these, and the card.

    Models are given by their folders or by those of their runs.

    Args:
        out: the folder to write; its name is the bundle's. An earlier bundle there is replaced.
        card: what the author states.
        generator: with its tokenizer.
        tokenizer: the same one with what was trained later, such as a detail decoder; default: as
            it lies in the generator's folder.
        segmenter: a segmentation network, if the bundle is to hold one.
        data: the folder that `prepare` filled and the models were trained on: figures are measured.
        figures: a figures.json that was measured before on the same weights, instead of `data`.
        split: the held-out cases that are segmented, and that show what rounding costs.
        samples: number of volumes that figures are measured on.
        seed: of the first of them.
        turing: also measure whether networks can tell samples from real volumes.

    Returns:
        Bytes of the bundle.

    Raises:
        MedarError: `out` holds other files, both or neither of `data` and `figures`, models that do
            not belong together, figures of other weights, or a bundle too large for the box.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not is_bundle(out)):
        raise MedarError(f"{out}: holds other files than a bundle; name a new folder")
    if (data is None) == (figures is None):
        raise MedarError("give either data, to measure figures, or figures that were measured")
    with atomic_folder(out) as folder:
        _copy_model(generator, GENERATOR, folder)
        if tokenizer is not None:
            _copy_model(tokenizer, TOKENIZER, folder)
        if segmenter is not None:
            _copy_model(segmenter, SEGMENTER, folder)
        exact = Synthesizer.from_pretrained(folder / PARTS[GENERATOR], "cpu")
        error = round_weights(folder)
        _replace_digest(folder, exact.tokenizer.digest)
        about = {"title": card.title, "makes": card.makes, "licence": card.licence}
        Bundle(**about, medar=__version__).save(folder)
        _check_size(folder, out)
        synthesizer = Synthesizer.from_pretrained(folder, "cpu")
        network = None if segmenter is None else Segmenter.from_pretrained(folder, "cpu")
        if data is not None:
            cost = rounding_cost(exact, synthesizer, data, split, error)
            measured = measure(synthesizer, network, data, split, samples, seed, turing)
            measured["rounding"] = plain(cost)
        else:
            assert figures is not None
            measured = _measured_before(figures, digests(synthesizer, network))
        write_json(folder / FIGURES, measured)
        modules = {
            GENERATOR: synthesizer.model,
            TOKENIZER: synthesizer.tokenizer.with_detail(None),
            "detail decoder": synthesizer.tokenizer.detail,
            SEGMENTER: network,
        }
        parts = {kind: _parameters(one) for kind, one in modules.items() if one is not None}
        write_text(folder / CARD, render_card(out.name, card, parts, measured))
        return _check_size(folder, out)


def _copy_model(path: Path, kind: str, bundle: Path) -> None:
    """Copy a model folder to its place in a bundle, instead of what lies there."""
    source, target = find_model(path, kind), bundle / PARTS[kind]
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(f"{TEMPORARY}*", TRACKED))


def _replace_digest(bundle: Path, former: str) -> None:
    """Name the rounded tokenizer wherever a file names the former one."""
    with TemporaryDirectory() as alone:
        # What lies below the tokenizer's folder names the former one, and would be refused.
        for path in (bundle / PARTS[TOKENIZER]).glob("*.*"):
            if path.is_file():
                shutil.copy(path, alone)
        digest = Tokenizer.from_pretrained(alone, "cpu").digest
    for path in bundle.rglob("*"):
        if path.suffix in (".json", ".md"):
            text = path.read_text(encoding="utf-8")
            write_text(path, text.replace(former, digest))
    for path in bundle.rglob(CONFIG):
        record_digest(path.parent)


def _measured_before(path: Path, models: dict[str, str]) -> dict[str, Any]:
    """The content of a figures.json, if it belongs to these models."""
    figures = read_json_object(path)
    if figures.get("models") != models:
        raise MedarError(
            f"{path}: measured on other weights than those of the bundle; measure them again with "
            "--data"
        )
    return figures


def _parameters(model: nn.Module) -> int:
    """Their number; what a generator shares with its tokenizer counts there."""
    shared = QUANTISER if isinstance(model, Generator) else "-"
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith(shared))


def _check_size(bundle: Path, out: Path) -> int:
    """The bytes of a bundle that will lie at `out`; only the box has limits.

    Raises:
        MedarError: it would be too large for the box.
    """
    size = size_of(bundle)
    if out.resolve().parent != box_folder():
        return size
    others = sum(size_of(box_folder() / name) for name in box_names() if name != out.name)
    for bytes_, limit, what in (
        (size, MAX_BYTES, "a model in the box"),
        (size + others, MAX_BYTES_TOGETHER, "all models in the box together"),
    ):
        if bytes_ > limit:
            raise MedarError(
                f"{out}: {bytes_ / 1e6:.1f} MB, but {what} must have at most {limit / 1e6:.0f} MB; "
                "train smaller networks, or pack it elsewhere"
            )
    return size
