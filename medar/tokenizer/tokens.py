"""`TokenDataset`: the folder that `medar tokenizer encode` writes, as training reads it.

tokens.json               settings the tokens were encoded with, and one entry per case
cases/<id>.safetensors    one `TokenPyramid` per case: the volume, then its augmented variants
maps/<id>.b2nd            the label maps or source volumes of these variants, if requested
tokenizer/                the tokenizer's model folder

B variants of a case (the first is not augmented), L tokens over all scales, X Y Z voxels.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medar.data.augmentation import Augmentation
from medar.data.cache import ArrayCache
from medar.data.case import Split
from medar.data.loading import Item, SeededDataset
from medar.data.preparation import Trace
from medar.data.prepared import PreparedCase
from medar.data.source import Source
from medar.errors import MedarError
from medar.files import digest, read_json, write_text
from medar.settings import OPTIONAL, from_dict, settings, to_dict
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.schedule import ScaleSchedule

INDEX, CASES, TOKENIZER, PREPARED = "tokens.json", "cases", "tokenizer", "prepared"
MAPS = "maps"
ENDING = ".safetensors"
FORMAT = "medar tokens 2"


@settings
class TokenCase(PreparedCase):
    """One case of a tokens folder; keys of arrays are hashes of files' content and the plan."""

    trace: dict[str, Any]
    """Leads from the plan's grid back to the case's own (see `Trace`)."""
    source: str | None = field(default=None, metadata=OPTIONAL)
    """Key of the case's source volume, for pairs; see `CaseSources.key`."""

    @property
    def file(self) -> str:
        """Path of the case's pyramid, relative to the folder."""
        return f"{CASES}/{self.id}{ENDING}"

    def made_from(self) -> tuple[str, str | None, str | None, dict[str, Any]]:
        """Everything about the case that its tokens depend on."""
        return self.image, self.label, self.source, self.trace


@settings
class TokenIndex:
    """The content of tokens.json."""

    format: str = FORMAT
    tokenizer: str
    """Digest of the tokenizer."""
    schedule: ScaleSchedule
    codebook_size: int
    """V, the size of the codebook."""
    plan: str
    """Digest of the plan."""
    seed: int
    variants: int
    """Augmented variants of each case, in addition to the volume itself."""
    augmentation: Augmentation | None
    """How the variants were made; None if there are none."""
    maps: dict[int, str] | None = None
    """Values and names of the labels in the label maps; None without maps."""
    source: Source | None = field(default=None, metadata=OPTIONAL)
    """What the source volumes are; None without."""
    cases: tuple[TokenCase, ...] = field(default_factory=tuple)

    @property
    def has_maps(self) -> bool:
        """Whether each case has label maps or source volumes beside its tokens."""
        return self.maps is not None or self.source is not None

    def encoding(self) -> dict[str, Any]:
        """Everything that the tokens of a case depend on besides the case."""
        return {name: value for name, value in to_dict(self).items() if name != "cases"}

    def save(self, folder: Path) -> None:
        """Write tokens.json atomically, one line per case."""
        head = json.dumps(self.encoding(), indent=2, ensure_ascii=False)
        lines = (json.dumps(to_dict(case), ensure_ascii=False) for case in self.cases)
        cases = ",\n    ".join(lines)
        text = f'{head.removesuffix("}").rstrip()},\n  "cases": [\n    {cases}\n  ]\n}}\n'
        write_text(folder / INDEX, text)

    @classmethod
    def load(cls, folder: str | Path) -> "TokenIndex":
        """Read tokens.json.

        Raises:
            MedarError: the folder holds no tokens, or tokens of another format.
        """
        path = Path(folder) / INDEX
        if not path.exists():
            raise MedarError(
                f"{folder}: no tokens (no {INDEX}); run `medar tokenizer encode DATA` with this "
                "folder first"
            )
        values = read_json(path)
        found = values.get("format") if isinstance(values, dict) else None
        if found != FORMAT:
            raise MedarError(f"{path}: format {found!r}, expected {FORMAT!r}; encode again")
        return from_dict(cls, values, str(path))


class TokenDataset(SeededDataset):
    """Token pyramids of a folder that `medar tokenizer encode` filled.

    An item is a dictionary: `indices` (L,) int64, all scales, coarse to fine; `index`, the position
    of its case in `cases`, where its attributes are stored; `variant`, 0 if it is not augmented;
    with `maps`, also `map` (X, Y, Z) of that variant on the plan's grid: the label map, with label
    values, 0 and -1 for unknown; or the source volume, float16 in [-1, 1], NaN for unknown.

    The variant of an item depends only on (seed, epoch, index).

    Args:
        folder: the tokens folder.
        split: the cases to read; None: all.
        seed: seed of the drawn variants.
        variant: always read this variant; 0 is the volume without augmentation, for evaluation.
            None: drawn.
        original_fraction: probability that variant 0 is drawn, of cases that have others.
        maps: include label maps or source volumes, whichever the folder has.

    Raises:
        MedarError: no tokens folder or an unfinished one, no case of the split, a negative seed, no
            such variant, or no maps.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        split: Split | None = None,
        seed: int = 0,
        variant: int | None = None,
        original_fraction: float = 0.3,
        maps: bool = False,
    ) -> None:
        super().__init__(seed)
        self.folder = Path(folder)
        self.about = TokenIndex.load(self.folder)
        self.cases = tuple(c for c in self.about.cases if split is None or c.split == split)
        self.variant, self.maps = variant, maps
        self.original_fraction = original_fraction
        self._maps = ArrayCache(self.folder / MAPS)
        if not self.cases:
            splits = ", ".join(sorted({str(case.split) for case in self.about.cases}))
            raise MedarError(f"{self.folder}: no case in split {split!r}; available: {splits}")
        if variant is not None and not 0 <= variant <= self.about.variants:
            raise MedarError(
                f"{self.folder}: no variant {variant}; available: 0 (not augmented) to "
                f"{self.about.variants}"
            )
        if maps and not self.about.has_maps:
            raise MedarError(
                f"{self.folder}: no label maps beside the tokens; run `medar tokenizer encode` "
                "with --maps on labelled data"
            )
        missing = [case.file for case in self.cases if not (self.folder / case.file).exists()]
        if missing:
            raise MedarError(
                f"{self.folder}: {len(missing)} of {len(self.cases)} cases have no tokens yet, the "
                f"first is {missing[0]}; run the same `medar tokenizer encode` again"
            )

    @property
    def schedule(self) -> ScaleSchedule:
        """The grids of all scales."""
        return self.about.schedule

    @property
    def codebook_size(self) -> int:
        """V, the size of the codebook."""
        return self.about.codebook_size

    @property
    def digest(self) -> str:
        """A hash of the cases: their order, names and arrays."""
        sources = [case.source for case in self.cases if case.source is not None]
        return digest([[case.id, case.image, case.label] for case in self.cases] + sources)

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of the tokenizer that made the tokens, for `Tokenizer.from_pretrained`."""
        return self.folder / TOKENIZER

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Item:
        variant = self.variant
        if variant is None:
            variant = self._draw_variant(np.random.default_rng(self.item_seed(index)))
        item = {
            "indices": self.pyramid(index).flatten()[variant],
            "index": index,
            "variant": variant,
        }
        if self.maps:
            item["map"] = self.map(index, variant)
        return item

    def _draw_variant(self, generator: np.random.Generator) -> int:
        if not self.about.variants or generator.random() < self.original_fraction:
            return 0
        return int(generator.integers(1, self.about.variants + 1))

    def pyramid(self, index: int) -> TokenPyramid:
        """All variants of a case; the first is not augmented.

        Raises:
            MedarError: the file is missing or damaged, or another tokenizer made it.
        """
        path = self.folder / self.cases[index].file
        pyramid = TokenPyramid.load(path)
        expected = (self.about.tokenizer, 1 + self.about.variants)
        if (pyramid.tokenizer, len(pyramid)) != expected:
            raise MedarError(
                f"{path}: {len(pyramid)} variants by tokenizer {pyramid.tokenizer}, but {INDEX} "
                f"names {expected[1]} by {expected[0]}; encode again"
            )
        return pyramid

    def map(self, index: int, variant: int = 0) -> Tensor:
        """The label map or source of a case's variant, (X, Y, Z); see the class.

        Raises:
            MedarError: the file is missing or damaged.
        """
        key = self.cases[index].id
        try:
            x, y, z = self._maps.open(key).shape[1:]
            return torch.from_numpy(self._maps.box(key, (0, 0, 0), (x, y, z), variant)[0])
        except Exception as error:
            raise MedarError(
                f"{self._maps.path(key)}: this map is missing or damaged; encode again"
            ) from error


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """A pyramid's file, with its case if it lies in a tokens folder."""

    path: Path
    folder: Path | None
    """The tokens folder; None for a file from elsewhere."""
    case: TokenCase | None

    @cached_property
    def trace(self) -> Trace | None:
        """Leads back to the case's own grid and intensities."""
        return Trace.from_dict(self.case.trace) if self.case else None

    @classmethod
    def find(cls, path: str | Path) -> "TokenFile":
        """Find the tokens folder that a pyramid's file belongs to."""
        path = Path(path)
        folder = path.absolute().parent.parent
        if path.absolute().parent.name != CASES or not (folder / INDEX).exists():
            return cls(path=path, folder=None, case=None)
        by_name = {Path(case.file).name: case for case in TokenIndex.load(folder).cases}
        return cls(path=path, folder=folder, case=by_name.get(path.name))
