"""`encode_data_set`: a data set to a folder of tokens (see `medar.tokenizer.tokens`).

The index is written before the tokens: a run that was interrupted leaves whole files of what the
index says, and the next one makes those that are missing. The volumes of one case go through the
network together, so that its tokens do not depend on which other cases are still to be made.
"""

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
from medar.data.loading import PreparedDataset
from medar.data.manifest import Manifest
from medar.data.plan import Plan
from medar.data.preparation import Trace
from medar.data.prepared import PreparedCase
from medar.data.resolve import Resolved, prepared_under
from medar.data.sources import read_manifest
from medar.devices import device_of
from medar.errors import MedarError
from medar.files import TEMPORARY, TRACKED, digest, exclusive, remove_temporaries, write_bytes
from medar.model_folder import CONFIG
from medar.progress import track
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.tokenizer import Tokenizer
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
    """What a run of `encode_data_set` did."""

    folder: Path
    made: int
    """Cases that were encoded."""
    kept: int
    """Cases whose tokens were there already."""
    failed: dict[str, str] = field(default_factory=dict)
    """Cases that could not be prepared, with reasons."""


def encode_data_set(
    data: str | Path,
    out: str | Path,
    model: str | Path,
    tokenizer: Tokenizer,
    *,
    split: Split | None = None,
    variants: int = 0,
    augmentation: Augmentation | None = None,
    maps: bool = False,
    seed: int = 0,
    batch_size: int = 8,
    workers: int = 0,
) -> Encoded:
    """Encode every case of a data set, and keep the tokenizer beside the tokens.

    A variant depends on the seed, the case's id and the variant's number alone.

    Args:
        data: a folder that `prepare` filled by the tokenizer's plan, or a data set, which is
            prepared into `out`/prepared first.
        out: the folder to fill; cases that it holds by the same settings are kept.
        model: the tokenizer's folder, which is copied.
        tokenizer: from that folder, on the device to compute on.
        split: the cases to take; None for all.
        variants: augmented variants of each case, beside the volume as it is.
        augmentation: how they are made; default `Augmentation()`.
        maps: keep the label map of each variant too, moved as its image was.
        seed: of the variants.
        batch_size: volumes of a case that go through the network at once.
        workers: loading processes; 0 loads in this one.

    Raises:
        MedarError: a tokenizer without a plan or data prepared by another one, a damaged case, a
            number out of range, maps of data without labels that the tokenizer's plan names, or an
            `out` that holds something else or is at work.
    """
    out = Path(out)
    plan = tokenizer.require_plan()
    at_least = [("variants", variants, 0), ("seed", seed, 0), ("workers", workers, 0)]
    for name, value, least in [*at_least, ("batch size", batch_size, 1)]:
        if value < least:
            raise MedarError(f"{name} {value}: a whole number from {least} is needed")
    augmentation = (augmentation or Augmentation()) if variants else None
    _check_out(out)
    with exclusive(out):
        found = _prepared(Path(data), plan, out / PREPARED)
        cases = _Cases(found.folder, split, augmentation, seed, variants, maps)
        index = TokenIndex(
            tokenizer=tokenizer.digest,
            schedule=tokenizer.config.schedule,
            codebook_size=tokenizer.codebook_size,
            plan=plan.digest,
            seed=seed,
            variants=variants,
            augmentation=augmentation,
            maps=plan.labels if maps else None,
            cases=tuple(cases.entries()),
        )
        if maps and not (plan.labels and any(case.label for case in index.cases)):
            raise MedarError(
                f"maps: no case of {data} has a label map of values that the tokenizer's plan names"
                f" ({', '.join(map(str, plan.labels)) or 'none'}); encode without them"
            )
        stored = ArrayCache(out / MAPS)
        kept = _kept(out, index, stored)
        _clear(out, kept)
        stored.prune({case.id for case in index.cases if maps and case.file in kept})
        _copy_model(Path(model), out / TOKENIZER)
        index.save(out)
        cases.todo = [k for k, case in enumerate(index.cases) if case.file not in kept]
        loader = DataLoader(cases, batch_size=None, num_workers=workers)
        for k, volumes, labels in track(loader, total=len(cases), label="encode"):
            if maps:
                stored.put(index.cases[k].id, labels.numpy(), {}, whole=True)
            _encode(tokenizer, volumes, batch_size).save(out / index.cases[k].file)
    return Encoded(folder=out, made=len(cases), kept=len(kept), failed=found.failed)


class _Cases(Dataset[tuple[int, Tensor, Tensor | None]]):
    """The volumes of each case still to be encoded: (1 + variants, C, X, Y, Z).

    With maps, their label maps too: (1 + variants, X, Y, Z), -1 where unknown.
    """

    def __init__(
        self,
        folder: Path,
        split: Split | None,
        augmentation: Augmentation | None,
        seed: int,
        variants: int,
        maps: bool,
    ) -> None:
        self.variants, self.maps = variants, maps
        self.data = PreparedDataset(folder, split=split, augmentation=augmentation, seed=seed)
        self.prepared, self.plan = self.data.prepared, self.data.plan
        self.todo: list[int] = []

    def __len__(self) -> int:
        return len(self.todo)

    def __getitem__(self, place: int) -> tuple[int, Tensor, Tensor | None]:
        index = self.todo[place]
        case = self.prepared[index]
        own = int(digest(case.id), 16)
        drawn = [
            self.data.draw(index, [self.data.seed, own, variant])
            for variant in range(1, 1 + self.variants)
        ]
        items = [self._as_it_is(case), *drawn]
        volumes = torch.stack([item["image"] for item in items])
        labels = torch.cat([item["label"] for item in items]) if self.maps else None
        return index, volumes, labels

    def entries(self) -> Iterator[TokenCase]:
        """What the index says of each case."""
        for k in range(len(self.prepared)):
            case = self.prepared[k]
            try:
                trace = self.prepared.trace(case)
            except MedarError as error:
                raise MedarError(f"case {case.id}: {error}") from error
            yield TokenCase(**vars(case), trace=self._seen(trace).to_dict())

    def _as_it_is(self, case: PreparedCase) -> dict[str, Tensor]:
        """The case without augmentation: in patch mode, the patch in its middle."""
        try:
            found = {"image": (torch.from_numpy(self.prepared.image(case)), -1.0)}
            if self.maps:
                found["label"] = (self.data.label(case), 0.0)
        except MedarError as error:
            raise MedarError(f"case {case.id} of {self.prepared.folder}: {error}") from error
        return {name: self._cut(array, fill) for name, (array, fill) in found.items()}

    def _cut(self, whole: Tensor, fill: float) -> Tensor:
        """In patch mode, the patch in the middle."""
        if self.plan.mode == "volume":
            return whole
        x, y, z = whole.shape[1:]
        cut = crop_or_pad(whole.numpy(), self._middle((x, y, z)), self.plan.size, fill)
        return torch.from_numpy(np.ascontiguousarray(cut))

    def _seen(self, trace: Trace) -> Trace:
        """The trace of `_as_it_is`."""
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
    made = [tokenizer.encode(part.to(device)) for part in torch.split(volumes, batch_size)]
    scales = zip(*(pyramid.indices for pyramid in made), strict=True)
    return replace(made[0], indices=tuple(torch.cat(scale).cpu() for scale in scales))


def _kept(out: Path, index: TokenIndex, maps: ArrayCache) -> set[str]:
    """The files in `out` that were made by the same settings from the same cases."""
    if not (out / INDEX).exists():
        return set()
    before = TokenIndex.load(out)
    if before.settings() != index.settings():
        return set()
    made_from = {case.id: case.made_from() for case in before.cases}
    return {
        case.file
        for case in index.cases
        if made_from.get(case.id) == case.made_from()
        and (out / case.file).exists()
        and (index.maps is None or case.id in maps)
    }


def _clear(out: Path, kept: set[str]) -> None:
    """Delete the tokens of other settings and cases, and what a killed run left unfinished."""
    for path in (out / CASES).glob("[!.]*" + ENDING):
        if f"{CASES}/{path.name}" not in kept:
            path.unlink()
    for folder in (out, out / CASES, out / TOKENIZER):
        remove_temporaries(folder)


def _copy_model(model: Path, target: Path) -> None:
    """The files of a model folder, its configuration last."""
    if model.resolve() == target.resolve():
        return
    files = [path for path in model.iterdir() if path.is_file() and path.name[0] != "."]
    for path in sorted(files, key=lambda path: (path.name == CONFIG, path.name)):
        write_bytes(target / path.name, path.read_bytes())


def _check_out(out: Path) -> None:
    """Refuse to mix tokens with other files."""
    if out.exists() and not out.is_dir():
        raise MedarError(f"{out}: is a file; OUT names a folder")
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    others = {name for name in found if not name.startswith(TEMPORARY)}
    others -= {INDEX, CASES, TOKENIZER, PREPARED, MAPS, TRACKED}
    if others and INDEX not in found:
        raise MedarError(
            f"{out}: holds other files ({sorted(others)[0]} ...); OUT needs a new or empty folder, "
            "or one that was encoded to before"
        )


def _prepared(path: Path, plan: Plan, out: Path) -> Resolved:
    """The cases in the plan's form: `path` itself, or `out`, filled from the data set there.

    What does not name its modality is the only one that the plan knows. Labels help to place
    patches, no more: those that the tokenizer does not know stay out.
    """

    def read(data: Path, stored: Manifest | None) -> Manifest:
        manifest = read_manifest(data, stored=stored)
        known = bool(plan.labels) and set(manifest.labels) <= set(plan.labels)
        cases = (
            replace(
                case,
                modality=case.modality or plan.sole_modality,
                label=case.label if known else None,
            )
            for case in manifest
        )
        return manifest.with_cases(tuple(cases))

    return prepared_under(path, plan, out, labels=bool(plan.labels), read=read)
