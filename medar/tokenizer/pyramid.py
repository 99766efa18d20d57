"""`TokenPyramid`: volumes as whole numbers, one grid of them a scale.

B batch, L tokens over all scales, T tokens of one scale, V codebook size.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from medar.errors import MedarError, one_line
from medar.files import write_bytes
from medar.tokenizer.schedule import ScaleSchedule

FORMAT = "medar token pyramid 1"
"""What a file says it is, with the version of its layout."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenPyramid:
    """A batch of token pyramids, whole or only their coarse scales.

    Raises:
        MedarError: no scale or too many, or indices that do not fit the schedule.
    """

    indices: tuple[Tensor, ...]
    """Per scale, coarse to fine, (B, T) int64 from 0 to V - 1, z fastest."""
    schedule: ScaleSchedule
    """The grids of all scales, of those too that `indices` does not reach."""
    codes: int
    """V, the size of the codebook."""
    tokenizer: str = ""
    """Digest of the tokenizer that made it."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.indices) <= len(self.schedule):
            raise MedarError(
                f"{len(self.indices)} scales of tokens; the schedule {self.schedule} has "
                f"{len(self.schedule)}"
            )
        for scale, (indices, tokens) in enumerate(
            zip(self.indices, self.schedule.tokens, strict=False)
        ):
            if indices.dtype != torch.int64 or indices.shape != (len(self), tokens):
                raise MedarError(
                    f"scale {scale}: tokens are {list(indices.shape)} {indices.dtype}, "
                    f"[{len(self)}, {tokens}] torch.int64 is needed"
                )

    def __len__(self) -> int:
        return self.indices[0].shape[0]

    def __getitem__(self, items: slice) -> "TokenPyramid":
        """Some items of the batch."""
        return replace(self, indices=tuple(indices[items] for indices in self.indices))

    def upto(self, scales: int) -> "TokenPyramid":
        """The coarsest `scales` scales alone.

        Raises:
            MedarError: fewer than one, or more than there are.
        """
        if not 1 <= scales <= len(self.indices):
            raise MedarError(f"upto {scales}: the pyramid has scales 1 to {len(self.indices)}")
        return replace(self, indices=self.indices[:scales])

    def to(self, device: torch.device | str) -> "TokenPyramid":
        """The same pyramid on a device."""
        return replace(self, indices=tuple(indices.to(device) for indices in self.indices))

    def flatten(self) -> Tensor:
        """(B, L): all scales, coarse to fine."""
        return torch.cat(self.indices, dim=1)

    @classmethod
    def from_flat(
        cls, flat: Tensor, schedule: ScaleSchedule, codes: int, tokenizer: str = ""
    ) -> "TokenPyramid":
        """The inverse of `flatten`: (B, L) whole numbers, or (B, tokens of the first scales).

        Raises:
            MedarError: the number of tokens is not that of whole scales.
        """
        return cls(
            indices=schedule.split(flat.long()), schedule=schedule, codes=codes, tokenizer=tokenizer
        )

    def save(self, path: str | Path) -> None:
        """Write the pyramid as safetensors, atomically: uint16 where V allows it, else int32.

        Raises:
            MedarError: the file cannot be written.
        """
        kind = torch.uint16 if self.codes <= 1 << 16 else torch.int32
        about = {
            "format": FORMAT,
            "schedule": json.dumps(self.schedule.to_dict()),
            "codes": str(self.codes),
            "tokenizer": self.tokenizer,
        }
        # One entry: safetensors keeps several in an order that changes from run to run.
        entry = {"medar": json.dumps(about)}
        data = save({"indices": self.flatten().cpu().to(kind).contiguous()}, metadata=entry)
        try:
            write_bytes(path, data)
        except OSError as error:
            raise MedarError(f"{path}: cannot be written ({error.strerror})") from error

    @classmethod
    def load(cls, path: str | Path) -> "TokenPyramid":
        """Read a pyramid.

        Raises:
            MedarError: the file is absent, is no token pyramid, or does not agree with itself.
        """
        about, flat = _read(path)
        if about.get("format") != FORMAT or flat is None:
            raise MedarError(
                f"{path}: no token pyramid (format {about.get('format', 'unknown')!r}, "
                f"{FORMAT!r} is needed); `medar tokenizer encode` writes one"
            )
        try:
            codes = int(about["codes"])
            schedule = ScaleSchedule.from_dict(json.loads(about["schedule"]))
            pyramid = cls.from_flat(flat, schedule, codes, about.get("tokenizer", ""))
        except (KeyError, ValueError, MedarError) as error:
            raise MedarError(f"{path}: damaged token pyramid ({one_line(error)})") from error
        if flat.numel() and not 0 <= int(flat.long().min()) <= int(flat.long().max()) < codes:
            raise MedarError(f"{path}: damaged token pyramid (tokens beyond 0 to {codes - 1})")
        return pyramid


def _read(path: str | Path) -> tuple[dict[str, Any], Tensor | None]:
    """What a safetensors file says of itself, and its tensor `indices` where it has one."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            flat = file.get_tensor("indices") if "indices" in file.keys() else None  # noqa: SIM118
            about = json.loads((file.metadata() or {}).get("medar", "{}"))
            return about if isinstance(about, dict) else {}, flat
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise MedarError(f"{path}: cannot be read ({reason})") from error
    except (safetensors.SafetensorError, ValueError) as error:
        raise MedarError(f"{path}: not a safetensors file ({one_line(error)})") from error
