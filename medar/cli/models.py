"""`medar models`: the models that come with medar, and how to make and share one."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from medar.cli.output import print_json, print_pairs

app = App(
    name="models",
    help="List, show and copy the models that come with medar; pack and share models.",
    help_format="markdown",
    default_parameter=Parameter(negative=""),
)


@app.command(name="list")
def list_(*, json: bool = False) -> None:
    """List the models that come with medar. A name works wherever a model folder does.

    Parameters
    ----------
    json
        Print one JSON object: folder, and models with name, title, makes, licence, bytes and
        figures.
    """
    from medar.model_box import Bundle, box_folder, box_names, size_of, summary_of

    folder = box_folder()
    bundles = {name: Bundle.load(folder / name) for name in box_names()}
    if json:
        models = [
            {
                "name": name,
                "title": bundle.title,
                "makes": bundle.makes,
                "licence": bundle.licence,
                "bytes": size_of(folder / name),
                "figures": summary_of(folder / name),
            }
            for name, bundle in bundles.items()
        ]
        print_json({"folder": str(folder), "models": models})
        return
    if not bundles:
        print("this installation has no models")
        return
    for name, bundle in bundles.items():
        about = {
            "makes": bundle.makes,
            "size": f"{size_of(folder / name) / 1e6:.1f} MB",
            "licence": bundle.licence,
            "figures": summary_of(folder / name),
        }
        print_pairs(name, about)


@app.default
def default() -> None:
    """List the models that come with medar."""
    list_()


@app.command
def show(name: str, /) -> None:
    """Print a model's card: data, licence, figures, limits.

    Parameters
    ----------
    name
        As `medar models` lists it, such as hippocampus-mr.
    """
    from medar.model_box import CARD, box_model

    print((box_model(name) / CARD).read_text(encoding="utf-8"), end="")


@app.command
def export(name: str, out: Path, /) -> None:
    """Copy a model to a folder, as ordinary model folders to look into or to train on from.

    Parameters
    ----------
    name
        As `medar models` lists it, such as hippocampus-mr.
    out
        A new or empty folder. It gets generator/, generator/tokenizer/ and, for some models,
        segmenter/.
    """
    from medar.model_box import export_model

    export_model(name, out)
    print(out)


@app.command
def push(model: Path, address: str, /, *, public: bool = False) -> None:
    """Upload a model to the Hugging Face hub; needs `pip install 'medar[hub]'`.

    Parameters
    ----------
    model
        A model folder, or that of a training run; a bundle; or a name that `medar models` lists.
    address
        hf:owner/name, which then works wherever a model folder does. The repository is made where
        absent.
    public
        Make a new repository public; check the licence of the training data first.
    """
    from medar.packing.push import push_to_hub

    print(push_to_hub(model, address, private=not public))


@app.command
def pack(
    out: Path,
    /,
    *,
    card: Path,
    generator: Path,
    tokenizer: Path | None = None,
    segmenter: Path | None = None,
    data: Path | None = None,
    figures: Path | None = None,
    split: Literal["val", "test"] = "test",
    samples: Annotated[int, Parameter(name=("--samples", "-n"))] = 100,
    seed: int = 0,
    turing: bool = False,
) -> None:
    """Make a bundle from training runs: float16 weights, figures measured on them, the card.

    Parameters
    ----------
    out
        Folder of the bundle, which is named after it; an earlier bundle there is replaced.
    card
        YAML with title, makes, data, licence, split, training, limits, citation and figures.
    generator
        Folder of the generator, or of its training run.
    tokenizer
        Folder of the generator's tokenizer, if parts of it were trained later; default: the one in
        the generator's folder.
    segmenter
        Folder of a segmentation network, or of its training run.
    data
        The folder that `medar data prepare` filled and the models were trained on; the figures are
        measured on its held-out cases.
    figures
        figures.json of an earlier bundle of the same weights, instead of DATA.
    split
        Split of the cases to segment; samples and reconstructions are judged beside all held-out
        ones.
    samples
        Number of volumes to make and judge.
    seed
        Seed of the first of them.
    turing
        Also train networks to tell samples from real volumes; two minutes on one CPU core.
    """
    from medar.packing.card import CardSettings
    from medar.packing.pack import pack as pack_bundle
    from medar.settings import load_yaml

    size = pack_bundle(
        out,
        load_yaml(CardSettings, card),
        generator=generator,
        tokenizer=tokenizer,
        segmenter=segmenter,
        data=data,
        figures=figures,
        split=split,
        samples=samples,
        seed=seed,
        turing=turing,
    )
    print(f"{out}: {size / 1e6:.1f} MB")
