"""`encode_data_set`: a data set to a folder of tokens (see `medar.tokenizer.tokens`).

The index is written before the tokens: an interrupted run leaves complete files of cases in the
index, and the next run encodes the missing ones. The volumes of one case go through the network
together, so that its tokens do not depend on which other cases are still to be encoded.
"""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medar.data.augmentation import Augmentation
from medar.data.cache import ArrayCache
from medar.data.case import Split
from medar.data.hashes import HashIndex
from medar.data.loading import PreparedDataset
from medar.data.manifest import Manifest
from medar.data.plan import Plan
from medar.data.preparation import Trace
from medar.data.prepared import HASHES_FILE, Prepared, PreparedCase
from medar.data.resolve import PreparedFolder, prepare_for_model
from medar.data.source import CaseSources, Degradation, Source, degraded
from medar.data.sources import read_manifest
from medar.devices import DeviceName, device_of
from medar.errors import MedarError
from medar.files import TEMPORARY, TRACKED, digest, exclusive, remove_temporaries, write_bytes
from medar.model_folder import CONFIG, find_model
from medar.parallel import is_elsewhere, run_parallel
from medar.progress import track
from medar.shared import Shared
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.tokenizer import DETAIL, Tokenizer
from medar.tokenizer.tokens import (
    CASES,
    ENDING,
    INDEX,
    MAPS,
    PREPARED,
    TOKENIZER,
    TokenCase,
    TokenIndex,
)
from medar.volume import Shape3
from medar.volume.resample import crop_or_pad


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The result of `encode_data_set`."""

    folder: Path
    made: int
    """Cases that were encoded."""
    kept: int
    """Cases that had been encoded before."""
    failed: dict[str, str] = field(default_factory=dict)
    """Cases that could not be prepared, with reasons."""


def encode_data_set(
    data: str | Path,
    out: str | Path,
    tokenizer: Tokenizer | str | Path,
    *,
    split: Split | None = None,
    variants: int = 0,
    augmentation: Augmentation | None = None,
    maps: bool = False,
    source: str | Path | None = None,
    degradation: Degradation | None = None,
    seed: int = 0,
    batch_size: int = 8,
    workers: int = 0,
    device: DeviceName = "auto",
) -> Encoded:
    """Encode every case of a data set, and keep the tokenizer beside the tokens.

    A variant depends only on the seed, the case's id and the variant's number.

    Args:
        data: a folder that `prepare` filled by the tokenizer's plan, or a data set, which is then
            prepared into `out`/prepared first.
        out: the folder to fill; cases that were encoded with the same settings are kept.
        tokenizer: its folder, whose files are copied into `out`, or a loaded tokenizer.
        split: the cases to encode; None: all.
        variants: augmented variants of each case, in addition to the volume itself.
        augmentation: how variants are made; default `Augmentation()`.
        maps: store the label map of each variant too, moved like its image.
        source: a data set with a source volume for each case, of the same id, registered to it;
            stored with each variant, moved like its image.
        degradation: store each variant itself, degraded, as its source.
        seed: seed of the variants.
        batch_size: volumes of a case per pass through the network.
        workers: loading processes; 0 loads in this one.
        device: where a tokenizer's folder is loaded; a loaded tokenizer stays on its device.

    Raises:
        MedarError: a tokenizer without a plan, data prepared by another plan, a damaged case, a
            number out of range, maps of data without labels that the tokenizer's plan names, a
            case without its source, more than one of maps, source and degradation, or an `out` that
            holds other files or is in use.
    """
    out, folder = Path(out), None
    for name, value, least in (
        ("variants", variants, 0), ("seed", seed, 0), ("workers", workers, 0),
        ("batch_size", batch_size, 1),
    ):  # fmt: skip
        if value < least:
            raise MedarError(f"{name} must be at least {least}, got {value}")
    if maps + (source is not None) + (degradation is not None) > 1:
        raise MedarError("maps, source and degradation exclude each other; give one of them")
    if not isinstance(tokenizer, Tokenizer):
        folder = find_model(tokenizer, "tokenizer")
        tokenizer = Tokenizer.from_pretrained(folder, device)
    plan = tokenizer.require_plan()
    augmentation = (augmentation or Augmentation()) if variants else None
    if degradation is not None and plan.channels:
        raise MedarError(f"degradation: {len(plan.channels)} channels; a source volume has one")
    _check_out(out)
    with exclusive(out):
        prepared = _prepared(Path(data), plan, out / PREPARED)
        sources = None
        if source is not None:
            hashes = HashIndex(out / HASHES_FILE)
            sources = CaseSources(
                Prepared(prepared.folder, split=split), read_manifest(source), hashes
            )
        cases = _Cases(
            prepared.folder, split, augmentation, seed, variants, maps, sources, degradation
        )
        index = TokenIndex(
            tokenizer=tokenizer.digest,
            schedule=tokenizer.config.schedule,
            codebook_size=tokenizer.codebook_size,
            plan=plan.digest,
            seed=seed,
            variants=variants,
            augmentation=augmentation,
            maps=plan.labels if maps else None,
            source=cases.source,
            cases=tuple(cases.entries()),
        )
        if maps and not (plan.labels and any(case.label for case in index.cases)):
            raise MedarError(
                f"maps: no case of {data} has a label map with values that the tokenizer's plan "
                f"names ({', '.join(map(str, plan.labels)) or 'none'}); encode without them"
            )
        stored = ArrayCache(out / MAPS)
        kept = _kept(out, index, stored)
        _clear(out, kept)
        stored.prune({case.id for case in index.cases if index.has_maps and case.file in kept})
        if folder is None:
            tokenizer.save_pretrained(out / TOKENIZER)
        else:
            _copy_model(folder, out / TOKENIZER)
        index.save(out)
        cases.todo = [k for k, case in enumerate(index.cases) if case.file not in kept]
        write = _Writer(
            cases=cases,
            files=tuple(case.file for case in index.cases),
            tokenizer=Shared(tokenizer),
            out=out,
            batch_size=batch_size,
        )
        if is_elsewhere():
            outcomes = run_parallel(write.encode, range(len(cases)), workers=1)
            for outcome in track(outcomes, total=len(cases), label="encode"):
                outcome.result()
        else:
            loader = DataLoader(cases, batch_size=None, num_workers=workers)
            for item in track(loader, total=len(cases), label="encode"):
                write(*item)
    return Encoded(folder=out, made=len(cases), kept=len(kept), failed=prepared.failed)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Writer:
    """Encodes loaded cases into files, in this process or on a cluster."""

    cases: "_Cases"
    files: tuple[str, ...]
    tokenizer: Shared[Tokenizer]
    out: Path
    batch_size: int

    def encode(self, position: int) -> None:
        """Load and encode one of the cases to do."""
        self(*self.cases[position])

    def __call__(self, index: int, volumes: Tensor, maps: Tensor | None) -> None:
        if maps is not None:
            name = self.cases.prepared[index].id
            ArrayCache(self.out / MAPS).put(name, maps.numpy(), {}, whole=True)
        pyramid = _encode(self.tokenizer.model, volumes, self.batch_size)
        pyramid.save(self.out / self.files[index])


class _Cases(Dataset[tuple[int, Tensor, Tensor | None]]):
    """The volumes of each case to encode: (1 + variants, C, X, Y, Z).

    With maps, also their label maps: (1 + variants, X, Y, Z), -1 where unknown. With sources, these
    instead, float16 and NaN where unknown.
    """

    def __init__(
        self,
        folder: Path,
        split: Split | None,
        augmentation: Augmentation | None,
        seed: int,
        variants: int,
        maps: bool,
        sources: CaseSources | None,
        degradation: Degradation | None,
    ) -> None:
        self.variants, self.maps = variants, maps
        self.sources, self.degradation = sources, degradation
        self.data = PreparedDataset(
            folder, split=split, augmentation=augmentation, seed=seed, sources=sources
        )
        self.prepared, self.plan = self.data.prepared, self.data.plan
        self.todo: list[int] = []

    def __len__(self) -> int:
        return len(self.todo)

    def __getitem__(self, position: int) -> tuple[int, Tensor, Tensor | None]:
        index = self.todo[position]
        case = self.prepared[index]
        own = int(digest(case.id), 16)
        drawn = [
            self.data.draw(index, [self.data.seed, own, variant])
            for variant in range(1, 1 + self.variants)
        ]
        items = [self._unchanged(case), *drawn]
        volumes = torch.stack([item["image"] for item in items])
        maps = None
        if self.maps:
            maps = torch.cat([item["label"] for item in items])
        elif self.sources is not None:
            maps = torch.cat([item["source"] for item in items]).half()
        elif self.degradation is not None:
            seeds = ([self.data.seed, own, variant, 1] for variant in range(len(volumes)))
            low = (
                degraded(volume, self.degradation, self.plan.spacing, seed)
                for volume, seed in zip(volumes, seeds, strict=True)
            )
            maps = torch.cat(list(low)).half()
        return index, volumes, maps

    @property
    def source(self) -> Source | None:
        """What the sources are."""
        if self.degradation is not None:
            return Source(degradation=self.degradation)
        return None if self.sources is None else self.sources.about

    def entries(self) -> Iterator[TokenCase]:
        """The entry of each case in the index."""
        for k in range(len(self.prepared)):
            case = self.prepared[k]
            try:
                trace = self.prepared.trace(case)
            except MedarError as error:
                raise MedarError(f"case {case.id}: {error}") from error
            source = None if self.sources is None else self.sources.key(case)
            yield TokenCase(**vars(case), trace=self._encoded_part(trace).to_dict(), source=source)
        if self.sources is not None:
            self.sources.hashes.save()

    def _unchanged(self, case: PreparedCase) -> dict[str, Tensor]:
        """The case without augmentation; in patch mode, its central patch."""
        try:
            arrays = {"image": (torch.from_numpy(self.prepared.image(case)), -1.0)}
            if self.maps:
                arrays["label"] = (self.data.label(case), 0.0)
            if self.sources is not None:
                arrays["source"] = (self.sources(case), math.nan)
        except MedarError as error:
            raise MedarError(f"case {case.id} of {self.prepared.folder}: {error}") from error
        return {name: self._cut(array, fill) for name, (array, fill) in arrays.items()}

    def _cut(self, whole: Tensor, fill: float) -> Tensor:
        """In patch mode, the central patch."""
        if self.plan.mode == "volume":
            return whole
        x, y, z = whole.shape[1:]
        cut = crop_or_pad(whole.numpy(), self._middle((x, y, z)), self.plan.size, fill)
        return torch.from_numpy(np.ascontiguousarray(cut))

    def _encoded_part(self, trace: Trace) -> Trace:
        """The trace of `_unchanged`."""
        if self.plan.mode == "volume":
            return trace
        target = trace.target.window(self._middle(trace.target.shape), self.plan.size)
        return replace(trace, target=target)

    def _middle(self, shape: Shape3) -> Shape3:
        x, y, z = ((n - size) // 2 for n, size in zip(shape, self.plan.size, strict=True))
        return x, y, z


def _encode(tokenizer: Tokenizer, volumes: Tensor, batch_size: int) -> TokenPyramid:
    """All variants of a case as one pyramid, on the CPU."""
    device = device_of(tokenizer)
    parts = [tokenizer.encode(part.to(device)) for part in torch.split(volumes, batch_size)]
    scales = zip(*(pyramid.indices for pyramid in parts), strict=True)
    return replace(parts[0], indices=tuple(torch.cat(scale).cpu() for scale in scales))


def _kept(out: Path, index: TokenIndex, maps: ArrayCache) -> set[str]:
    """The files in `out` that were encoded with the same settings from the same cases."""
    if not (out / INDEX).exists():
        return set()
    before = TokenIndex.load(out)
    if before.encoding() != index.encoding():
        return set()
    made_from = {case.id: case.made_from() for case in before.cases}
    return {
        case.file
        for case in index.cases
        if made_from.get(case.id) == case.made_from()
        and (out / case.file).exists()
        and (not index.has_maps or case.id in maps)
    }


def _clear(out: Path, kept: set[str]) -> None:
    """Delete tokens of other settings and cases, and unfinished files of a killed run."""
    for path in (out / CASES).glob("[!.]*" + ENDING):
        if f"{CASES}/{path.name}" not in kept:
            path.unlink()
    for folder in (out, out / CASES, out / TOKENIZER):
        remove_temporaries(folder)


def _copy_model(model: Path, target: Path) -> None:
    """Copy the files of a model folder and of its detail decoder, config.json last."""
    if model.resolve() == target.resolve():
        return
    shutil.rmtree(target / DETAIL, ignore_errors=True)  # it may be of an earlier training
    for folder in (model / DETAIL, model):
        files = [path for path in folder.glob("[!.]*") if path.is_file()]
        for path in sorted(files, key=lambda path: (path.name == CONFIG, path.name)):
            write_bytes(target / path.relative_to(model), path.read_bytes())


def _check_out(out: Path) -> None:
    """Check that `out` holds no other files than tokens."""
    if out.exists() and not out.is_dir():
        raise MedarError(f"{out}: must be a folder, got a file")
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    others = {name for name in found if not name.startswith(TEMPORARY)}
    others -= {INDEX, CASES, TOKENIZER, PREPARED, MAPS, HASHES_FILE, TRACKED}
    if others and INDEX not in found:
        raise MedarError(
            f"{out}: holds other files ({sorted(others)[0]} ...); use a new or empty folder, or "
            "one with tokens"
        )


def _prepared(path: Path, plan: Plan, out: Path) -> PreparedFolder:
    """The cases prepared by the plan: `path` itself, or `out`, filled from the data set at `path`.

    Cases without a modality get the only one in the plan. Labels that the plan does not name are
    left out: they would only affect the sampling of patches.
    """

    def read(data: Path, stored: Manifest | None) -> Manifest:
        manifest = read_manifest(data, stored=stored)
        labelled = bool(plan.labels) and set(manifest.labels) <= set(plan.labels)
        cases = (
            replace(
                case,
                modality=case.modality or plan.sole_modality,
                label=case.label if labelled else None,
            )
            for case in manifest
        )
        return manifest.with_cases(tuple(cases))

    return prepare_for_model(path, plan, out, labels=bool(plan.labels), read=read)
