"""`Draft`: a sample of which only the first scales are drawn, to be looked at before the rest.

    drafts of many seeds -> looked at -> the chosen ones continued

The scales that are left are drawn with the random numbers of the draft's seed, so that a finished
draft is the volume that its seed gives without a draft. If the label map was edited in between, the
draft's tokens stay and the finer scales follow the new map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medar.errors import MedarError
from medar.files import read_json_object
from medar.tokenizer.pyramid import TokenPyramid

INPUTS = ("inpaint", "region", "upscale", "known_scales", "source", "model_spacing")
"""Entries of a record that must be equal in a draft and what continues it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Draft:
    """A sample with the first scales alone."""

    tokens: TokenPyramid
    """The scales drawn so far, a batch of one."""
    about: Mapping[str, Any]
    """Its record, see `SyntheticVolume.about`."""
    name: str = "draft"
    """For messages: its file."""

    @property
    def seed(self) -> int:
        """Of the sample."""
        seed: int = self.about["seed"]
        return seed

    def check(self, digests: Mapping[str, str], record: Mapping[str, Any]) -> None:
        """Refuse to continue a draft with another model or other inputs.

        Args:
            digests: of model and tokenizer.
            record: of the request that continues it.

        Raises:
            MedarError: model, tokenizer or an input other than the mask differs.
        """
        for name, value in digests.items():
            if self.about.get(name) != value:
                raise MedarError(
                    f"{self.name}: drawn by another {name} ({self.about.get(name)}, this one is "
                    f"{value}); continue it with the one that it was made with"
                )
        if self.tokens.tokenizer != digests["tokenizer"]:
            raise MedarError(
                f"{self.name}: its tokens are of tokenizer {self.tokens.tokenizer}, its record "
                f"names {digests['tokenizer']}; make the drafts again"
            )
        for name in INPUTS:
            if record.get(name) != self.about.get(name):
                raise MedarError(
                    f"{self.name}: made with {name} {self.about.get(name)}, but continued with "
                    f"{record.get(name)}; give the options that it was made with"
                )
        if ("mask" in record) != ("mask" in self.about):
            raise MedarError(
                f"{self.name}: made {'with' if 'mask' in self.about else 'without'} a mask; "
                "continue it the same way, with the same mask or an edited one"
            )


def read_draft(path: str | Path) -> Draft:
    """Read a draft that `medar synthesize --until-scale` wrote.

    Args:
        path: one of its files, such as draft_0007.nii.gz, or their common beginning, draft_0007.

    Raises:
        MedarError: its record or tokens are absent or damaged.
    """
    path = Path(path)
    record = path.with_name(f"{path.name.split('.')[0]}.json")
    if not record.exists():
        raise MedarError(
            f"{path}: no draft ({record} is missing); make drafts with medar synthesize "
            "--until-scale K"
        )
    about = read_json_object(record)
    tokens = about.get("tokens")
    kinds = {"seed": int, "sampling": dict, "attributes": dict, "tokens": str}
    for name, kind in kinds.items():
        if not isinstance(about.get(name), kind):
            reason = "a finished sample" if tokens is None else "a damaged record"
            raise MedarError(f"{record}: {reason}, not of a draft (no {name!r}); name a draft")
    return Draft(
        tokens=TokenPyramid.load(record.parent / str(tokens)), about=about, name=str(record)
    )


def common_draft(drafts: Sequence[Draft]) -> Draft:
    """The first of several drafts of one request.

    Raises:
        MedarError: no draft, several with the same seed, or drafts of several requests.
    """
    if not drafts:
        raise MedarError("no draft to continue; name at least one")
    first = drafts[0]
    seeds: dict[int, Draft] = {}
    for draft in drafts:
        other = seeds.setdefault(draft.seed, draft)
        if other is not draft:
            raise MedarError(f"{draft.name}: has the seed of {other.name}; name one of them")
        for name in ("attributes", "sampling", "until_scale"):
            if draft.about.get(name) != first.about.get(name):
                raise MedarError(
                    f"{draft.name}: another {name} than {first.name}; continue them one by one"
                )
    return first
