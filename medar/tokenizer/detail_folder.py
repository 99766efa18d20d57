"""A detail decoder as a model folder, inside that of its tokenizer."""

from pathlib import Path

from medar.errors import MedarError
from medar.model_folder import (
    CONFIG,
    load_weights,
    model_card,
    read_config,
    weight_bytes,
    write_model,
)
from medar.settings import from_dict, to_dict
from medar.tokenizer.detail import DetailConfig, DetailDecoder

CLASS, FORMAT_VERSION = "DetailDecoder", 1


def save_detail(folder: str | Path, model: DetailDecoder, tokenizer: str) -> None:
    """Write a detail decoder as a model folder.

    Args:
        folder: to be written.
        model: the decoder.
        tokenizer: digest of the tokenizer that it was trained for.
    """
    config = model.config
    lines = [
        f"detail for volumes that tokenizer {tokenizer} decoded",
        f"features per level: {', '.join(map(str, config.widths))}",
        f"steps: {config.steps} ({config.method})",
        f"correlation of the noise along x, y, z: {', '.join(map(str, config.correlation))}",
        f"parameters: {sum(p.numel() for p in model.parameters()):,}",
    ]
    write_model(
        folder,
        config={"class": CLASS, **to_dict(config), "tokenizer": tokenizer},
        version=FORMAT_VERSION,
        weights=weight_bytes(model.state_dict(), str(to_dict(config))),
        card=model_card("detail decoder", lines),
    )


def load_detail(folder: str | Path, tokenizer: str) -> DetailDecoder:
    """Read what `save_detail` wrote, on the CPU, in evaluation mode.

    Raises:
        MedarError: a file is absent or damaged, of another class or format, or the decoder was
            trained for another tokenizer.
    """
    values = read_config(folder, (CLASS,), FORMAT_VERSION, "detail decoder")
    del values["class"]
    trained_for = values.pop("tokenizer", None)
    if trained_for != tokenizer:
        raise MedarError(
            f"{folder}: detail decoder of tokenizer {trained_for}, but this one is {tokenizer}; "
            "restore the folder, or delete it to go without detail"
        )
    model = DetailDecoder(from_dict(DetailConfig, values, str(Path(folder) / CONFIG)))
    load_weights(model, folder)
    return model.eval()
