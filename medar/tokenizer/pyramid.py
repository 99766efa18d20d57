"""`TokenPyramid`: volumes as integers, one grid of them per scale.

B batch, L tokens over all scales, T tokens of one scale, V codebook size.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from medar.errors import MedarError, one_line
from medar.files import write_bytes
from medar.tokenizer.schedule import ScaleSchedule

FORMAT = "medar token pyramid 2"
"""Format name and version in the file's metadata."""
CHECKSUM = "checksum"
"""Key in the file's metadata."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenPyramid:
    """A batch of token pyramids, complete or only their coarse scales.

    Raises:
        MedarError: no scale or too many, or indices whose shape does not fit the schedule.
    """

    indices: tuple[Tensor, ...] = field(repr=False)
    """Per scale, coarse to fine, (B, T) int64 from 0 to V - 1, z fastest."""
    schedule: ScaleSchedule
    """The grids of all scales, also of those that `indices` lacks."""
    codebook_size: int
    """V, the size of the codebook."""
    tokenizer: str = ""
    """Digest of the tokenizer that made it; empty if unknown."""

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
                    f"scale {scale}: tokens must be [{len(self)}, {tokens}] torch.int64, got "
                    f"{list(indices.shape)} {indices.dtype}"
                )

    def __len__(self) -> int:
        return self.indices[0].shape[0]

    def __getitem__(self, items: slice) -> "TokenPyramid":
        """A slice of the batch."""
        return replace(self, indices=tuple(indices[items] for indices in self.indices))

    def upto(self, scales: int) -> "TokenPyramid":
        """The coarsest `scales` scales.

        Raises:
            MedarError: not from 1 to the number of scales.
        """
        if not 1 <= scales <= len(self.indices):
            raise MedarError(f"upto must be from 1 to {len(self.indices)}, got {scales}")
        return replace(self, indices=self.indices[:scales])

    def to(self, device: torch.device | str) -> "TokenPyramid":
        """The pyramid on a device."""
        return replace(self, indices=tuple(indices.to(device) for indices in self.indices))

    def flatten(self) -> Tensor:
        """(B, L): all scales, coarse to fine."""
        return torch.cat(self.indices, dim=1)

    @classmethod
    def from_flat(
        cls, flat: Tensor, schedule: ScaleSchedule, codebook_size: int, tokenizer: str = ""
    ) -> "TokenPyramid":
        """The inverse of `flatten`, from (B, L) integers or (B, tokens of the first scales).

        Raises:
            MedarError: the number of tokens does not end with a scale.
        """
        return cls(
            indices=schedule.split(flat.long()),
            schedule=schedule,
            codebook_size=codebook_size,
            tokenizer=tokenizer,
        )

    def save(self, path: str | Path) -> None:
        """Write the pyramid as safetensors, atomically, in uint16 if V allows it, else int32.

        Raises:
            MedarError: the file cannot be written.
        """
        kind = torch.uint16 if self.codebook_size <= 1 << 16 else torch.int32
        about = {
            "format": FORMAT,
            "schedule": json.dumps(self.schedule.to_dict()),
            "codebook_size": str(self.codebook_size),
            "tokenizer": self.tokenizer,
        }
        flat = self.flatten().cpu().to(kind).contiguous()
        # One entry: the order of several would change from run to run.
        entry = {"medar": json.dumps({**about, CHECKSUM: _checksum(about, flat)})}
        data = save({"indices": flat}, metadata=entry)
        try:
            write_bytes(path, data)
        except OSError as error:
            raise MedarError(f"{path}: cannot be written ({error.strerror})") from error

    @classmethod
    def load(cls, path: str | Path) -> "TokenPyramid":
        """Read a pyramid.

        Raises:
            MedarError: the file is absent, is not a token pyramid, or is inconsistent.
        """
        about, flat = _read(path)
        stated = about.pop(CHECKSUM, None)
        if stated is not None and flat is not None and stated != _checksum(about, flat):
            raise MedarError(f"{path}: damaged token pyramid (another checksum); encode it again")
        if about.get("format") != FORMAT or flat is None:
            raise MedarError(
                f"{path}: not a token pyramid of this version (format "
                f"{about.get('format', 'unknown')!r}, expected {FORMAT!r}); encode it again"
            )
        try:
            codebook_size = int(about["codebook_size"])
            schedule = ScaleSchedule.from_dict(json.loads(about["schedule"]))
            pyramid = cls.from_flat(flat, schedule, codebook_size, about.get("tokenizer", ""))
        except (KeyError, ValueError, MedarError) as error:
            raise MedarError(f"{path}: damaged token pyramid ({one_line(error)})") from error
        tokens, largest = flat.long(), codebook_size - 1
        if flat.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) <= largest:
            raise MedarError(f"{path}: damaged token pyramid (tokens outside 0 to {largest})")
        return pyramid


def joined(pyramids: Sequence[TokenPyramid]) -> TokenPyramid:
    """Pyramids of the same scales as one batch.

    Raises:
        MedarError: another schedule or number of scales.
    """
    first = pyramids[0]
    for one in pyramids:
        if (one.schedule, len(one.indices)) != (first.schedule, len(first.indices)):
            raise MedarError(
                f"pyramids of {len(first.indices)} scales of {first.schedule} and of "
                f"{len(one.indices)} of {one.schedule} cannot be one batch"
            )
    scales = zip(*(one.indices for one in pyramids), strict=True)
    return replace(first, indices=tuple(torch.cat(scale) for scale in scales))


def _checksum(about: dict[str, Any], flat: Tensor) -> int:
    """CRC-32 of a pyramid's metadata and tokens; files of earlier snapshots have none."""
    numbers = flat.to(torch.int32).numpy().astype("<i4").tobytes()
    return zlib.crc32(numbers, zlib.crc32(json.dumps(about, sort_keys=True).encode()))


def _read(path: str | Path) -> tuple[dict[str, Any], Tensor | None]:
    """A safetensors file's metadata, and its tensor `indices` if it has one."""
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
