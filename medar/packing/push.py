"""`push_to_hub`: a trained model to the Hugging Face hub."""

from pathlib import Path

from medar import hub
from medar.model_box import is_bundle, locate
from medar.model_folder import find_model


def push_to_hub(model: str | Path, address: str, *, private: bool = True) -> str:
    """Upload a model folder or a bundle; `from_pretrained(address)` then loads it anywhere.

    Args:
        model: the folder, that of a training run, or the name of a model in the box.
        address: "hf:owner/name"; the repository is made where absent.
        private: whether a new repository is visible to its owner only. Check the licence of the
            training data before you publish weights.

    Returns:
        The web address of the commit.

    Raises:
        MedarError: there is no such model, huggingface_hub is not installed, or the hub refuses.
    """
    root = locate(model)
    folder = root if is_bundle(root) else find_model(root, "model")
    return hub.upload(folder, address, private=private)
