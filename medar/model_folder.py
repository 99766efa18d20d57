"""Model folders: the format of saved tokenizers, generators and segmentation networks.

config.json         class, format version, the settings the model is built from, and the digests of
                    the weights file and of both JSON files
model.safetensors   the weights
preprocess.json     the plan: all that leads from a file to the network and back
README.md           the model card

Every file is written atomically and config.json last, so that a folder with a config.json is
complete. Nothing in a folder is ever executed. Weights are loaded only if they are finite and the
files have the digests in config.json.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from medar.errors import MedarError, one_line
from medar.files import (
    digest,
    file_digest,
    read_json,
    read_json_object,
    write_bytes,
    write_json,
    write_text,
)
from medar.model_box import PARTS, box_names, is_bundle, known_names, locate, part_of
from medar.model_sizes import check_sizes
from medar.records import is_run, trained_in
from medar.settings import from_dict, to_dict

if TYPE_CHECKING:
    from torch import Tensor, nn

S = TypeVar("S")

CONFIG, WEIGHTS, PREPROCESS, CARD = (
    "config.json", "model.safetensors", "preprocess.json", "README.md",
)  # fmt: skip

DIGEST = "weights"
"""Key in config.json of the digest of model.safetensors."""

SETTINGS = "settings"
"""Key in config.json of the digest of what it and preprocess.json state."""

LARGEST = 1e18
"""Magnitude of the largest weight: the square of a larger one overflows float32, and normalisation
would hide it."""


def find_model(path: str | Path, kind: str) -> Path:
    """The model folder that a path or a name stands for.

    Args:
        path: the model's folder, that of its training run, which holds it as `model`, that of a
            recipe, or that of a bundle; the name of a model that comes with medar; or
            `hf:owner/name` (`medar.model_box`). A local path comes before a name.
        kind: of the model: "tokenizer", "generator" or "segmentation network".

    Raises:
        MedarError: there is no such folder or name, or no model of this kind in it.
    """
    root = locate(path)
    if is_bundle(root):
        return part_of(root, kind)
    for folder in _candidates(root, kind):
        if (folder / CONFIG).is_file():
            return folder
    if is_run(root):
        raise MedarError(
            f"{path}: a recipe's folder without a {kind}; `medar status {path}` lists what is done"
        )
    text = Path(path).as_posix()
    if not root.exists():
        raise MedarError(
            f"{path}: no {kind} (neither a folder nor a model that comes with medar; "
            f"{known_names()}); give the folder that training left, or a name of `medar models`"
        )
    hidden = (
        "; it hides the model of this name that comes with medar" if text in box_names() else ""
    )
    raise MedarError(
        f"{path}: no {kind} (neither {CONFIG} nor model/{CONFIG}){hidden}; give the folder that "
        "training left"
    )


def holds_model(path: str | Path, kind: str) -> bool:
    """Whether `find_model` would find a folder, of whatever class unless in a bundle.

    Raises:
        MedarError: a repository that cannot be read.
    """
    root = locate(path)
    if is_bundle(root):
        return (root / PARTS[kind]).is_dir()
    return any((folder / CONFIG).is_file() for folder in _candidates(root, kind))


def _candidates(root: Path, kind: str) -> list[Path]:
    """The folders that may be the model folder, in order."""
    trainings = trained_in(root, kind) if is_run(root) else [root]
    return [one for folder in trainings for one in (folder, folder / "model")]


def read_config(
    folder: str | Path, classes: Sequence[str], version: int, kind: str = "model"
) -> dict[str, Any]:
    """The content of a folder's config.json without its format version and digests.

    Args:
        folder: the model folder.
        classes: values of "class" that the caller can build.
        version: the format version that the caller reads.
        kind: of the model, for the message.

    Raises:
        MedarError: the file is absent or damaged, names another class, has another version, or
            sizes that the weights cannot have.
    """
    path = Path(folder) / CONFIG
    values = read_json_object(path)
    name, found = values.get("class"), values.pop("format", None)
    if name not in tuple(classes):
        raise MedarError(f"{path}: class {name!r} is not a {kind}; expected {' or '.join(classes)}")
    if found != version:
        age = "an earlier" if isinstance(found, int) and found < version else "another"
        raise MedarError(
            f"{path}: format {found}, written by {age} version of medar; this one reads format "
            f"{version}: train the model again, or use the version that wrote it"
        )
    values.pop(DIGEST, None)
    values.pop(SETTINGS, None)
    check_sizes(values, path, Path(folder) / WEIGHTS)
    return values


def read_preprocess(folder: str | Path, cls: type[S]) -> S:
    """The settings in a folder's preprocess.json, a `medar.data.plan.Plan`.

    Raises:
        MedarError: the file is absent or damaged.
    """
    path = Path(folder) / PREPROCESS
    return from_dict(cls, read_json(path), str(path))


def write_model(
    folder: str | Path,
    *,
    config: Mapping[str, Any],
    version: int,
    weights: bytes,
    card: str,
    preprocess: Any = None,
) -> None:
    """Write a model folder, file by file atomically, config.json last.

    Args:
        folder: to be written; made where absent.
        config: the content of config.json, "class" included.
        version: its format version.
        weights: see `weight_bytes`.
        card: see `model_card`.
        preprocess: the plan; None where the model has none, or another folder holds it.
    """
    folder = Path(folder)
    write_bytes(folder / WEIGHTS, weights)
    plan = None if preprocess is None else to_dict(preprocess)
    if plan is not None:
        write_json(folder / PREPROCESS, plan)
    write_text(folder / CARD, card)
    values = {"format": version, **config}
    digests = {DIGEST: digest_of(weights), SETTINGS: _settings_digest(values, plan)}
    write_json(folder / CONFIG, {**values, **digests})


def record_digest(folder: Path) -> None:
    """Write the digests of a folder's files, which have been replaced, into its config.json."""
    config = read_json_object(folder / CONFIG)
    digests = {
        DIGEST: file_digest(folder / WEIGHTS),
        SETTINGS: _settings_digest(config, _plan_of(folder)),
    }
    write_json(folder / CONFIG, {**config, **digests})


def _settings_digest(config: Mapping[str, Any], plan: Any) -> str:
    """A hash of the content of config.json, without its digests, and of preprocess.json."""
    values = {name: value for name, value in config.items() if name not in (DIGEST, SETTINGS)}
    return digest(json.loads(json.dumps([values, plan])))  # as files hold them: keys are texts


def _plan_of(folder: Path) -> Any:
    """The content of preprocess.json; None without one."""
    return read_json(folder / PREPROCESS) if (folder / PREPROCESS).exists() else None


def weight_bytes(state: "Mapping[str, Tensor]", about: str = "") -> bytes:
    """Tensors as a safetensors file, the same bytes for the same values on any device.

    Args:
        state: tensors by name.
        about: text kept in the file, such as the settings, so that a hash covers them too.
    """
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    # One key: safetensors does not keep the order of several.
    return save(tensors, metadata={"config": about} if about else None)


def digest_of(weights: bytes) -> str:
    """A hash of what `weight_bytes` returned."""
    return hashlib.blake2b(weights, digest_size=16).hexdigest()


def read_weights(folder: str | Path) -> "dict[str, Tensor]":
    """The tensors in a folder's model.safetensors, on the CPU.

    Raises:
        MedarError: the file is absent or damaged, or holds NaN, Inf or overflowing values; or
            config.json or preprocess.json state something else than when they were written.

    Warns:
        UserWarning: an earlier version of medar wrote the folder, without a digest of its weights.
    """
    from safetensors.torch import load_file

    path = Path(folder) / WEIGHTS
    _check_digest(Path(folder))
    try:
        weights = load_file(path)
    except Exception as error:
        raise MedarError(
            f"{path}: not the weights of this configuration ({one_line(error)})"
        ) from error
    for name, values in weights.items():
        # Comparisons with NaN are false.
        if values.is_floating_point() and values.numel() and not values.abs().max() <= LARGEST:
            raise MedarError(
                f"{path}: {name!r} holds NaN, Inf or values beyond {LARGEST:g}, with which a "
                "network computes nothing; restore the file, or train the model again"
            )
    return weights


def _check_digest(folder: Path) -> None:
    """Compare the files of a folder with the digests in its config.json."""
    config = read_json_object(folder / CONFIG)
    written, plan = config.get(SETTINGS), _plan_of(folder)
    if written is not None and written != _settings_digest(config, plan):
        names = CONFIG if plan is None else f"{CONFIG} or {PREPROCESS}"
        raise MedarError(
            f"{folder}: {names} has changed since the model was saved; restore the files from a "
            f"copy or, if the change is intended, remove the key {SETTINGS!r} from {CONFIG}"
        )
    path, stated = folder / WEIGHTS, config.get(DIGEST)
    if stated is None:
        warnings.warn(
            f"{folder}: an earlier version of medar wrote this model, without a digest of its "
            "weights: damage to them would not be noticed; save it again to add one",
            stacklevel=4,
        )
        return
    try:
        found = file_digest(path)
    except OSError as error:
        raise MedarError(f"{path}: cannot be read ({error.strerror})") from error
    if found != stated:
        raise MedarError(
            f"{path}: not the weights of this configuration (digest {found}, {CONFIG} states "
            f"{stated}): damaged, or of another model; restore both files from a copy"
        )


def load_weights(
    module: "nn.Module", folder: str | Path, *, prefix: str = "", elsewhere: str = ""
) -> None:
    """Fill a module with a folder's weights.

    Args:
        module: whose parameters and buffers are filled.
        folder: the model folder.
        prefix: of the names in the file, removed before they are compared.
        elsewhere: prefix of the module's names that the file need not hold, because another folder
            does.

    Raises:
        MedarError: see `read_weights`; or names or shapes are not the module's.
    """
    state = {name.removeprefix(prefix): value for name, value in read_weights(folder).items()}
    path = Path(folder) / WEIGHTS
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise MedarError(
            f"{path}: not the weights of this configuration ({one_line(error)})"
        ) from error
    if elsewhere:
        missing = [name for name in missing if not name.startswith(elsewhere)]
    for name in [*missing, *unexpected]:
        raise MedarError(f"{path}: not the weights of this configuration (at {name!r})")


def model_card(kind: str, lines: Sequence[str], *, remark: str = "") -> str:
    """The README.md of a model folder.

    Args:
        kind: "tokenizer", for the title.
        lines: facts, such as "parameters: 1,234".
        remark: a sentence before the disclaimer.
    """
    facts = "".join(f"- {line}\n" for line in lines)
    return (
        f"# medar {kind}\n\n"
        f"{remark}{' ' if remark else ''}Not a medical device: for research only.\n\n"
        f"{facts}"
        "- data, licence and limitations: to be stated by the author\n"
    )
