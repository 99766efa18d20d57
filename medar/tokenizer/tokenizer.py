"""`Tokenizer`: volumes to token pyramids and back, with all that is needed to do it again.

    volume -> Encoder -> latent -> MultiScaleQuantiser -> indices of each scale (TokenPyramid)
    TokenPyramid -> latent -> Decoder -> volume, and label logits where it has a label head

A tokenizer is kept as a folder: `config.json`, `model.safetensors`, `preprocess.json` (the plan
that takes a file to the network and back) and a model card. Its digest, of weights and settings,
ties a pyramid to the tokenizer that made it.

B batch, C channels, X Y Z voxels.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from medar.data.plan import Plan
from medar.errors import MedarError
from medar.model_folder import (
    CONFIG,
    PREPROCESS,
    digest_of,
    load_weights,
    model_card,
    read_config,
    read_preprocess,
    weight_bytes,
    write_model,
)
from medar.settings import STRICT, from_dict, to_dict
from medar.tokenizer.codebooks import CodebookSettings, codebooks, make_codebook
from medar.tokenizer.network import Decoded, Decoder, Encoder, NetworkConfig
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.residual import MultiScaleQuantiser, Quantisation, QuantiserSettings
from medar.tokenizer.schedule import ScaleSchedule
from medar.volume import Shape3

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What a tokenizer is made of.

    Raises:
        MedarError: network and codebook disagree on the width of codes.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    schedule: ScaleSchedule
    network: NetworkConfig = field(default_factory=NetworkConfig)
    codebook: CodebookSettings = field(default_factory=CodebookSettings)
    quantiser: QuantiserSettings = field(default_factory=QuantiserSettings)

    def __post_init__(self) -> None:
        if self.network.code_width != self.codebook.width:
            raise MedarError(
                f"network.code_width {self.network.code_width} and codebook.width "
                f"{self.codebook.width}: one width is needed for both"
            )

    @property
    def size(self) -> Shape3:
        """Voxels of the volumes that the schedule is for."""
        pairs = zip(self.schedule.latent, self.network.downsampling, strict=True)
        x, y, z = (sites * factor for sites, factor in pairs)
        return x, y, z


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """What training looks at: a batch after the whole way."""

    volume: Tensor
    """(B, C, X, Y, Z)."""
    logits: Tensor | None
    """(B, labels + 1, X, Y, Z); None without a label head."""
    quantisation: Quantisation


class Tokenizer(nn.Module):
    """Volumes in [-1, 1] to token pyramids and back.

    Args:
        config: see `TokenizerConfig`.
        plan: how files are brought to the network's form, if known; kept with the weights.

    Raises:
        MedarError: the plan's size is not that of the schedule.
    """

    encoder_type: ClassVar[type[Encoder]] = Encoder
    decoder_type: ClassVar[type[Decoder]] = Decoder

    def __init__(self, config: TokenizerConfig, plan: Plan | None = None) -> None:
        super().__init__()
        if plan is not None and plan.size != config.size:
            raise MedarError(
                f"plan of size {list(plan.size)} for a tokenizer of {list(config.size)} voxels: "
                "schedule and downsampling must give the plan's size"
            )
        self.config = config
        self.plan = plan
        self._digest: tuple[object, str] | None = None
        self.encoder = self.encoder_type(config.network)
        self.decoder = self.decoder_type(config.network)
        codebook = make_codebook(config.codebook)
        self.quantiser = MultiScaleQuantiser(codebook, config.schedule, config.quantiser)

    @property
    def codes(self) -> int:
        """V, the number of codes."""
        return self.quantiser.codebook.size

    @property
    def digest(self) -> str:
        """A hash of settings and weights; taken anew only when a weight has changed."""
        state = self.state_dict(keep_vars=True).values()
        version = tuple((tensor.data_ptr(), tensor._version) for tensor in state)
        if self._digest is None or self._digest[0] != version:
            value = digest_of(self._weights())
            self._digest = version, value
        return self._digest[1]

    def forward(self, volumes: Tensor) -> Reconstruction:
        """(B, C, X, Y, Z) the whole way, with what training needs."""
        quantisation = self.quantiser(self.encoder(volumes))
        decoded: Decoded = self.decoder(quantisation.latent)
        return Reconstruction(
            volume=decoded.volume, logits=decoded.logits, quantisation=quantisation
        )

    @torch.no_grad()
    def encode(self, volumes: Tensor) -> TokenPyramid:
        """(B, C, X, Y, Z) to tokens.

        Raises:
            MedarError: volumes of another size than the schedule is for.
        """
        return TokenPyramid(
            indices=self.quantiser.encode(self.encoder(volumes)),
            schedule=self.config.schedule,
            codes=self.codes,
            tokenizer=self.digest,
        )

    @torch.no_grad()
    def decode(self, pyramid: TokenPyramid, upto: int | None = None) -> Decoded:
        """Tokens to (B, C, X, Y, Z), and label logits where there is a label head.

        Args:
            pyramid: made by this tokenizer, or sampled for it.
            upto: use the coarsest `upto` scales only.

        Raises:
            MedarError: see `latent`.
        """
        decoded: Decoded = self.decoder(self.latent(pyramid, upto))
        return decoded

    @torch.no_grad()
    def latent(self, pyramid: TokenPyramid, upto: int | None = None) -> Tensor:
        """The latent that tokens stand for, (B, D, x, y, z); see `decode`.

        Raises:
            MedarError: a pyramid of another tokenizer, schedule or number of codes, or `upto`
                beyond its scales.
        """
        if pyramid.tokenizer and pyramid.tokenizer != self.digest:
            raise MedarError(
                f"token pyramid of tokenizer {pyramid.tokenizer}, this one is {self.digest}; "
                "decode it with the one that made it"
            )
        if (pyramid.schedule, pyramid.codes) != (self.config.schedule, self.codes):
            raise MedarError(
                f"token pyramid of {pyramid.schedule} and {pyramid.codes} codes; this tokenizer "
                f"has {self.config.schedule} and {self.codes} codes"
            )
        return self.quantiser.decode(pyramid.indices, upto)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer as a folder, file by file atomically, the configuration last."""
        config = {"class": type(self).__name__, **to_dict(self.config)}
        external = codebooks.import_path(self.config.codebook.kind)
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

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The tokenizer that `save_pretrained` wrote, in evaluation mode.

        Raises:
            MedarError: a file is absent or damaged, the folder holds a model of another class or
                format, or its codebook's class cannot be imported.
        """
        folder = Path(folder)
        values = read_config(folder, (cls.__name__,), FORMAT_VERSION, "tokenizer")
        del values["class"]
        _import_codebook(values)
        plan = read_preprocess(folder, Plan) if (folder / PREPROCESS).exists() else None
        tokenizer = cls(from_dict(TokenizerConfig, values, str(folder / CONFIG)), plan)
        load_weights(tokenizer, folder)
        return tokenizer.eval()

    def _weights(self) -> bytes:
        return weight_bytes(self.state_dict(), str(to_dict(self.config)))

    def _card(self) -> str:
        size = " x ".join(map(str, self.config.size))
        spacing = " x ".join(f"{s:g}" for s in self.plan.spacing) if self.plan else "unknown"
        lines = [
            f"volumes: {size} voxels, spacing {spacing} mm, {self.config.network.channels} "
            "channel(s)",
            f"scales: {self.config.schedule}",
            f"codebook: {self.config.codebook.kind}, {self.codes} codes",
            f"parameters: {sum(p.numel() for p in self.parameters()):,}",
        ]
        return model_card("tokenizer", lines)


def _import_codebook(values: dict[str, Any]) -> None:
    """Import the codebook from outside medar that a config.json names, if it names one."""
    imports, settings = values.pop("imports", {}), values.get("codebook")
    if isinstance(imports, dict) and isinstance(settings, dict):
        codebooks.load_external(str(settings.get("kind")), imports.get("codebook"))
