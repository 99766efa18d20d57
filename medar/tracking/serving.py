"""What a model in MLflow answers: one request of plain values in, volumes as NIfTI bytes out.

    generator   seed, n, class, attributes, ... -> a row a volume: seed, image, label, about
    tokenizer   volume, upto, modality          -> a row: image, label, psnr, outside
    segmenter   volume, mirrors, modality       -> a row: label, about

Volumes travel as the bytes of files, whose affine and intensities are known to every tool. In JSON
they are base64, as MLflow does with binary columns.
"""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from medar.data.reading import read_for_plan
from medar.errors import MedarError
from medar.files import read_json
from medar.generator.settings import SamplingSettings
from medar.segmentation.files import segment_files
from medar.segmentation.folder import load_segmenter
from medar.segmentation.network import Segmenter
from medar.segmentation.prediction import prediction_settings
from medar.settings import STRICT, from_dict, to_dict
from medar.synthesis.request import Request
from medar.synthesis.samples import write_samples
from medar.synthesis.synthesizer import Synthesizer, seeds_from
from medar.tokenizer.tokenizer import Tokenizer
from medar.tracking.signature import kind_of
from medar.volume import Volume, read_volume, write_nifti

Row = dict[str, Any]
Answers = Callable[[Mapping[str, Any]], list[Row]]
"""From a request to the rows of the answer."""

GZIP = b"\x1f\x8b"

MOST = 100
"""Volumes of one request, all of which are in memory before the answer leaves."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request for synthetic volumes; see `Request` for all but seed and n."""

    __pydantic_config__: ClassVar[Any] = STRICT

    seed: int
    """Of the first volume; each further one has the next."""
    n: int = 1
    """How many, `MOST` at most."""
    class_: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    """What differs from the model folder's own `SamplingSettings`."""
    modality: str | None = None
    mask: bytes | None = None
    inpaint: bytes | None = None
    region: bytes | None = None
    upscale: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Given:
    """A volume for a tokenizer."""

    __pydantic_config__: ClassVar[Any] = STRICT

    volume: bytes
    upto: int | None = None
    """Use the coarsest scales only."""
    modality: str | None = None


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A volume for a segmentation network."""

    __pydantic_config__: ClassVar[Any] = STRICT

    volume: bytes
    mirrors: str | None = None
    """"none" or some of "xyz"; default those that the network was trained with."""
    modality: str | None = None


def answers_of(folder: str | Path) -> Answers:
    """The model of a folder, ready to answer.

    Raises:
        MedarError: the folder holds none, or a damaged one.
    """
    kind = kind_of(Path(folder))
    if kind == "tokenizer":
        return Reconstructor(Tokenizer.from_pretrained(folder, "auto"))
    if kind == "segmenter":
        return Segmented(load_segmenter(folder))
    return Generated(Synthesizer.from_pretrained(folder))


class Generated:
    """Answers with synthetic volumes, the files that `medar synthesize` would leave."""

    def __init__(self, synthesizer: Synthesizer) -> None:
        self._synthesizer = synthesizer

    def __call__(self, request: Mapping[str, Any]) -> list[Row]:
        """A row a volume: seed, image, label (None without a label head), about (JSON).

        Raises:
            MedarError: something that the model cannot be asked for.
        """
        values = _plain(request)
        if "class" in values:
            values["class_"] = values.pop("class")
        asked = from_dict(Asked, values, "request")
        if asked.n > MOST:
            raise MedarError(f"n {asked.n}: {MOST} volumes a request at most; ask again for more")
        seeds = seeds_from(asked.seed, asked.n)
        with _scratch() as scratch:
            job = self._synthesizer.job(self._request(asked, scratch))
            images, _ = write_samples(scratch / "samples", self._synthesizer, job, seeds)
            return [_sample(image) for image in images]

    def _request(self, asked: Asked, scratch: Path) -> Request:
        own = to_dict(self._synthesizer.sampling)
        plan = self._synthesizer.plan

        def image(name: str) -> Volume | None:
            content = getattr(asked, name)
            if content is None:
                return None
            return read_for_plan(plan, _file(scratch, name, content), modality=asked.modality)

        def labels(name: str) -> Volume | None:
            content = getattr(asked, name)
            if content is None:
                return None
            return read_volume(_file(scratch, name, content), labels=True)

        return Request(
            class_=asked.class_,
            attributes=asked.attributes,
            modality=asked.modality,
            mask=labels("mask"),
            inpaint=image("inpaint"),
            region=labels("region"),
            upscale=image("upscale"),
            sampling=from_dict(SamplingSettings, {**own, **asked.sampling}, "request: sampling"),
        )


class Reconstructor:
    """Answers with reconstructions, as `medar tokenizer reconstruct` makes them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, request: Mapping[str, Any]) -> list[Row]:
        """One row: image, label (None without a label head), psnr in dB, outside.

        Raises:
            MedarError: no volume, or one that the plan has no rule for.
        """
        given = from_dict(Given, _plain(request), "request")
        plan = self._tokenizer.require_plan()
        with _scratch() as scratch:
            path = _file(scratch, "volume", given.volume)
            volume = read_for_plan(plan, path, modality=given.modality)
            made = self._tokenizer.reconstruct(volume, given.upto)
            written = scratch / "made.nii.gz"
            write_nifti(written, made.image, grid="source")
            image, label = written.read_bytes(), None
            if made.label is not None:
                write_nifti(written, made.label, grid="source")
                label = written.read_bytes()
        psnr = made.psnr if math.isfinite(made.psnr) else None
        return [{"image": image, "label": label, "psnr": psnr, "outside": made.outside}]


class Segmented:
    """Answers with label maps, as `medar segment` makes them."""

    def __init__(self, model: Segmenter) -> None:
        self._model = model

    def __call__(self, request: Mapping[str, Any]) -> list[Row]:
        """One row: label, about (JSON).

        Raises:
            MedarError: no volume, or one that the plan has no rule for.
        """
        shown = from_dict(Shown, _plain(request), "request")
        settings = prediction_settings(shown.mirrors)
        with _scratch() as scratch:
            path, made = _file(scratch, "volume", shown.volume), scratch / "label.nii.gz"
            list(segment_files(self._model, path, made, settings, modality=shown.modality))
            about = read_json(made.with_name("label.json"))
            about.pop("image")  # a file of ours, which is gone
            return [{"label": made.read_bytes(), "about": json.dumps(about, ensure_ascii=False)}]


def _sample(image: Path) -> Row:
    """A sample that was written, as it lies there."""
    record = read_json(image.with_name(image.name.replace(".nii.gz", ".json")))
    label = record["label"] and image.with_name(record["label"]).read_bytes()
    about = json.dumps(record, ensure_ascii=False)
    return {"seed": record["seed"], "image": image.read_bytes(), "label": label, "about": about}


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for the files of one request, which errors name as parts of it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        except MedarError as error:
            raise MedarError(str(error).replace(f"{folder}{os.sep}", "request: ")) from error


def _file(folder: Path, name: str, content: bytes) -> Path:
    """The bytes of a volume as a file; by its name a reader tells whether it is compressed."""
    path = folder / f"{name}.nii{'.gz' if content.startswith(GZIP) else ''}"
    path.write_bytes(content)
    return path


def _plain(request: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table as plain values, without what it leaves open."""
    values: dict[str, Any] = {}
    for name, value in request.items():
        plain = value.tolist() if hasattr(value, "tolist") else value
        if plain is None or (isinstance(plain, float) and math.isnan(plain)):
            continue
        if name in ("attributes", "sampling") and not isinstance(plain, dict):
            raise MedarError(
                f"request: {name} {plain!r}; names and values are needed, and requests as a list "
                '([{"seed": 0, "attributes": {"age": 60}}])'
            )
        values[name] = plain
    return values
