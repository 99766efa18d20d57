"""`Tokenizer`: volumes to token pyramids and back.

    volume -> Encoder -> latent -> MultiScaleQuantiser -> indices of each scale (TokenPyramid)
    TokenPyramid -> latent -> Decoder -> D(z), and label logits if there is a label head
    D(z) -> DetailDecoder -> volume, if there is one

A tokenizer is saved as a model folder (see `medar.model_folder`). Its digest, a hash of weights and
settings, ties a pyramid to the tokenizer that made it.

B batch, C channels, X Y Z voxels.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from medar.data.plan import Plan
from medar.data.preparation import prepare_image, restore_image, restore_label
from medar.devices import (
    DeviceName,
    InferencePrecision,
    device_of,
    inference_autocast,
    to_device,
    without_tf32,
)
from medar.errors import MedarError
from medar.finite import check_finite
from medar.model_folder import (
    CONFIG,
    PREPROCESS,
    digest_of,
    find_model,
    load_weights,
    model_card,
    read_config,
    read_preprocess,
    weight_bytes,
    write_model,
)
from medar.settings import from_dict, settings, to_dict
from medar.tokenizer.bounded import DecodedMap, decode_within, encode_within
from medar.tokenizer.codebooks import CODEBOOKS, Codebook, CodebookSettings, make_codebook
from medar.tokenizer.detail import Detail, DetailDecoder
from medar.tokenizer.detail_folder import load_detail, save_detail
from medar.tokenizer.inference import (
    Reconstructed,
    by_windows,
    decoded_arrays,
    field_of_view,
    psnr_within,
)
from medar.tokenizer.network import Decoded, Decoder, Encoder, NetworkConfig
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.quantiser import MultiScaleQuantiser, Quantisation, QuantiserSettings
from medar.tokenizer.schedule import ScaleSchedule
from medar.volume import Shape3, Volume

FORMAT_VERSION = 2

DETAIL = "detail"
"""Folder of the detail decoder in the tokenizer's own."""


@settings
class TokenizerConfig:
    """All sizes of a tokenizer.

    Raises:
        MedarError: network and codebook differ in the width of codes.
    """

    schedule: ScaleSchedule
    network: NetworkConfig = field(default_factory=NetworkConfig)
    codebook: CodebookSettings = field(default_factory=CodebookSettings)
    quantiser: QuantiserSettings = field(default_factory=QuantiserSettings)

    def __post_init__(self) -> None:
        if self.network.code_width != self.codebook.width:
            raise MedarError(
                f"network.code_width {self.network.code_width} and codebook.width "
                f"{self.codebook.width} must be equal"
            )

    @property
    def size(self) -> Shape3:
        """Voxels per side of the volumes: the latent grid times the downsampling."""
        pairs = zip(self.schedule.latent, self.network.downsampling, strict=True)
        x, y, z = (sites * factor for sites, factor in pairs)
        return x, y, z


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """A batch after encoding, quantisation and decoding, with what the losses need."""

    volume: Tensor
    """(B, C, X, Y, Z)."""
    logits: Tensor | None
    """(B, labels + 1, X, Y, Z); None without a label head."""
    quantisation: Quantisation


class Tokenizer(nn.Module):
    """Volumes in [-1, 1] to token pyramids and back.

    Args:
        config: see `TokenizerConfig`.
        plan: leads from files to the network and back; saved with the weights. None: the tokenizer
            takes arrays only.

    Raises:
        MedarError: the plan's size differs from the schedule's.
    """

    def __init__(self, config: TokenizerConfig, plan: Plan | None = None) -> None:
        super().__init__()
        self.loaded_from: tuple[str, str] | None = None
        if plan is not None and plan.size != config.size:
            raise MedarError(
                f"plan of size {list(plan.size)} for a tokenizer of {list(config.size)} voxels; "
                "schedule times downsampling must equal the plan's size"
            )
        self.config = config
        self.plan = plan
        self._digest: tuple[object, str] | None = None
        self.encoder = Encoder(config.network)
        self.decoder = Decoder(config.network)
        codebook = make_codebook(config.codebook)
        self.quantiser = MultiScaleQuantiser(codebook, config.schedule, config.quantiser)
        self.detail: DetailDecoder | None = None

    @property
    def codebook_size(self) -> int:
        """V, the number of codes."""
        return self.quantiser.codebook.size

    @property
    def digest(self) -> str:
        """A hash of settings and weights; recomputed only if a weight has changed.

        The detail decoder does not count: it changes no token.
        """
        state = self.state_dict(keep_vars=True).values()
        version = tuple((tensor.data_ptr(), tensor._version) for tensor in state)
        if self._digest is None or self._digest[0] != version:
            value = digest_of(self._weights())
            self._digest = version, value
        return self._digest[1]

    def forward(self, volumes: Tensor) -> Reconstruction:
        """Encode, quantise and decode (B, C, X, Y, Z), with what training needs."""
        quantisation = self.quantiser(self.encoder(volumes))
        decoded: Decoded = self.decoder(quantisation.latent)
        return Reconstruction(
            volume=decoded.volume, logits=decoded.logits, quantisation=quantisation
        )

    @torch.no_grad()
    def encode(self, volumes: Tensor, budget: int | None = None) -> TokenPyramid:
        """Encode (B, C, X, Y, Z) in fp32 without TF32, so that CUDA gives the tokens of a CPU.

        Volumes for which the encoder would need more than `budget` bytes are encoded slab by slab,
        with the same result. The default is the device's `memory_budget`.

        Raises:
            MedarError: the volumes do not have the size of the schedule, or latents are NaN.
        """
        with without_tf32(), inference_autocast(volumes.device, "fp32"):
            latent = encode_within(self.encoder, volumes, budget)
            check_finite(latent, "the tokenizer's latents")
            indices = self.quantiser.encode(latent)
        return TokenPyramid(
            indices=indices,
            schedule=self.config.schedule,
            codebook_size=self.codebook_size,
            tokenizer=self.digest,
        )

    @torch.no_grad()
    def decode(self, pyramid: TokenPyramid, upto: int | None = None) -> Decoded:
        """Decode to (B, C, X, Y, Z), and to label logits if there is a label head.

        Args:
            pyramid: made by this tokenizer, or sampled for it.
            upto: use the coarsest `upto` scales only.

        Raises:
            MedarError: see `latent`; or volumes or logits that are NaN or infinite.
        """
        decoded: Decoded = self.decoder(self.latent(pyramid, upto))
        check_finite(decoded.volume, "the decoded volumes")
        if decoded.logits is not None:
            check_finite(decoded.logits, "the decoder's label logits")
        return decoded

    @torch.no_grad()
    def latent(self, pyramid: TokenPyramid, upto: int | None = None) -> Tensor:
        """The latent of a pyramid, (B, D, x, y, z); see `decode`.

        Raises:
            MedarError: the pyramid has another tokenizer, schedule or codebook size, or `upto` is
                beyond its scales.
        """
        if pyramid.tokenizer and pyramid.tokenizer != self.digest:
            raise MedarError(
                f"token pyramid of tokenizer {pyramid.tokenizer}, but this one is {self.digest}; "
                "decode it with its own tokenizer"
            )
        if (pyramid.schedule, pyramid.codebook_size) != (self.config.schedule, self.codebook_size):
            raise MedarError(
                f"token pyramid of {pyramid.schedule} and {pyramid.codebook_size} codes, but this "
                f"tokenizer has {self.config.schedule} and {self.codebook_size} codes"
            )
        return self.quantiser.decode(pyramid.indices, upto)

    def decode_map(
        self,
        pyramid: TokenPyramid,
        upto: int | None = None,
        budget: int | None = None,
        precision: InferencePrecision = "auto",
    ) -> DecodedMap:
        """Decode in bounded memory, with the most likely class of each voxel instead of logits.

        Latents for which the decoder would need more than `budget` bytes are decoded slab by slab;
        the result is the same (see `medar.tokenizer.slabs`). The default is the device's
        `memory_budget`. The decoder computes in `precision`; the volume is float32.

        Raises:
            MedarError: see `latent`.
        """
        latent = self.latent(pyramid.to(device_of(self)), upto)
        return decode_within(self.decoder, latent, budget, precision)

    def with_detail(self, detail: DetailDecoder | None) -> Self:
        """The same tokenizer, sharing its weights, with another detail decoder or none."""
        other = copy(self)
        other._modules = dict(self._modules)
        other.detail = detail
        other.loaded_from = None  # the folder need not hold this detail decoder
        return other

    def detail_steps(self, detail: Detail = "auto") -> int:
        """Number of steps of the detail decoder; 0 for none.

        Raises:
            MedarError: fewer than one step, several of a decoder that draws in one, or steps
                without a detail decoder.
        """
        if detail == "none":
            return 0
        if detail == "auto":
            return self.detail.config.steps if self.detail else 0
        if detail < 1:
            raise MedarError(f'detail must be "auto", "none" or at least 1 step, got {detail}')
        if self.detail is None:
            raise MedarError(
                f"detail {detail}: this tokenizer has no detail decoder; train one with `medar "
                'tokenizer detail`, or use "none"'
            )
        self.detail.config.check_steps(detail)
        return detail

    def add_detail(
        self,
        decoded: Tensor,
        seeds: Sequence[int],
        detail: Detail = "auto",
        budget: int | None = None,
        precision: InferencePrecision = "auto",
    ) -> Tensor:
        """Add detail to decoded volumes (B, C, X, Y, Z) of any size; see `DetailDecoder.draw`.

        Unchanged without a detail decoder. Volumes are processed one by one, so that none changes
        another.

        Args:
            decoded: D(z).
            seeds: one per volume.
            detail: number of steps.
            budget: bytes that a pass may take; default: the device's `memory_budget`.
            precision: of the network; results are float32.

        Raises:
            MedarError: see `detail_steps`.
        """
        steps = self.detail_steps(detail)
        if steps == 0 or self.detail is None:
            return decoded
        pairs = zip(decoded, seeds, strict=True)
        drawn = [
            self.detail.draw(one[None], [seed], steps, budget, precision) for one, seed in pairs
        ]
        return torch.cat(drawn)

    def reconstruct(
        self,
        volume: Volume,
        upto: int | None = None,
        *,
        detail: Detail = "auto",
        seed: int = 0,
        precision: InferencePrecision = "auto",
    ) -> Reconstructed:
        """Encode a volume as read from a file and decode it onto its own grid and intensities.

        Volumes are encoded in fp32: in bf16 they would get other tokens.

        Args:
            volume: of any shape and orientation; its modality or channels must be the plan's.
            upto: use the coarsest `upto` scales only.
            detail: number of steps of the detail decoder; "none" gives the best PSNR.
            seed: of the detail.
            precision: of decoder and detail decoder.

        Raises:
            MedarError: no plan, no intensity rule for the volume in the plan, `upto` beyond the
                scales, or see `detail_steps`.
        """
        plan = self.require_plan()
        array, trace = prepare_image(volume, plan)
        batch = torch.from_numpy(array.copy())[None].to(device_of(self))
        if array.shape[1:] == plan.size:
            decoded = self.decode_map(self.encode(batch), upto, precision=precision)
        else:
            decoded = by_windows(
                partial(self._reconstruct_window, upto=upto, precision=precision),
                batch,
                self.config.size,
            )
        drawn = self.add_detail(decoded.volume, [seed], detail, precision=precision)
        arrays = decoded_arrays(decoded._replace(volume=drawn), plan)
        image = restore_image(arrays.image, trace)
        inside = field_of_view(trace)
        return Reconstructed(
            image=image,
            label=None if arrays.label is None else restore_label(arrays.label, trace),
            psnr=psnr_within(inside, volume, image, trace.windows),
            outside=float(1 - inside.mean()),
        )

    def require_plan(self) -> Plan:
        """The plan that leads from files to the tokenizer and back.

        Raises:
            MedarError: it has none, or one that does not fit its network.
        """
        if self.plan is None:
            raise MedarError(
                "the tokenizer has no plan (preprocess.json in its folder) and cannot read files; "
                "train it on a prepared data set, or copy the file from its model folder"
            )
        network = self.config.network
        channels = len(self.plan.channels) or 1
        if channels != network.channels or network.labels not in (0, len(self.plan.labels)):
            raise MedarError(
                f"the tokenizer's network has {network.channels} channels and {network.labels} "
                f"labels, its plan {channels} and {len(self.plan.labels)}; config.json and "
                "preprocess.json belong to different models"
            )
        return self.plan

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer as a model folder that `from_pretrained` reads."""
        config = {"class": type(self).__name__, **to_dict(self.config)}
        external = CODEBOOKS.import_path(self.config.codebook.kind)
        if external is not None:
            config["imports"] = {"codebook": external}
        write_model(
            folder,
            config=config,
            version=FORMAT_VERSION,
            weights=self._weights(),
            card=self._card(),
            preprocess=self.plan,
        )
        if self.detail is not None:
            save_detail(Path(folder) / DETAIL, self.detail, self.digest)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: DeviceName = "auto") -> Self:
        """Load a tokenizer that `save_pretrained` or training wrote, in evaluation mode.

        Args:
            path: the model folder, or that of its training run; or a name (`find_model`).
            device: of the tokenizer; "auto" is CUDA if available.

        Raises:
            MedarError: a file is absent or damaged, the folder holds a model of another class or
                format, or its codebook's class cannot be imported.
        """
        folder = find_model(path, "tokenizer")
        values = read_config(folder, (cls.__name__,), FORMAT_VERSION, "tokenizer")
        del values["class"]
        _import_codebook(values)
        plan = read_preprocess(folder, Plan) if (folder / PREPROCESS).exists() else None
        tokenizer = cls(from_dict(TokenizerConfig, values, str(folder / CONFIG)), plan)
        load_weights(tokenizer, folder)
        if (folder / DETAIL / CONFIG).exists():
            tokenizer.detail = load_detail(folder / DETAIL, tokenizer.digest)
        tokenizer.loaded_from = str(path), device
        return to_device(tokenizer, device).eval()

    def _reconstruct_window(
        self, window: Tensor, *, upto: int | None, precision: InferencePrecision
    ) -> tuple[Tensor, ...]:
        """A window's reconstruction and, with a label head, its class probabilities."""
        pyramid = self.encode(window)
        with inference_autocast(window.device, precision):
            decoded = self.decode(pyramid, upto)
        if decoded.logits is None:
            return (decoded.volume.float(),)
        return decoded.volume.float(), decoded.logits.float().softmax(1)

    def _weights(self) -> bytes:
        state = self.state_dict()
        own = {name: value for name, value in state.items() if not name.startswith(f"{DETAIL}.")}
        return weight_bytes(own, str(to_dict(self.config)))

    def _card(self) -> str:
        size = " x ".join(map(str, self.config.size))
        spacing = " x ".join(f"{s:g}" for s in self.plan.spacing) if self.plan else "unknown"
        lines = [
            f"volumes: {size} voxels, spacing {spacing} mm, {self.config.network.channels} "
            "channel(s)",
            f"scales: {self.config.schedule}",
            f"codebook: {self.config.codebook.kind}, {self.codebook_size} codes",
            f"parameters: {sum(p.numel() for p in self.with_detail(None).parameters()):,}",
            f"detail decoder: {'in the folder detail' if self.detail else 'none'}",
        ]
        return model_card("tokenizer", lines)


def _import_codebook(values: dict[str, Any]) -> None:
    """Import the codebook from outside medar that a config.json names, if it names one."""
    imports, settings = values.pop("imports", {}), values.get("codebook")
    if isinstance(imports, dict) and isinstance(settings, dict):
        CODEBOOKS.load_external(str(settings.get("kind")), imports.get("codebook"), Codebook)
