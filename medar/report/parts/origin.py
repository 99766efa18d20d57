"""Where the run comes from, how to do it again, and what it must not be taken for."""

import shlex

from medar.report.blocks import Block, Code, LeftOut, Notes, Table
from medar.report.folder import SEGMENTATION, SYNTHESIS, RunFolder

ENVIRONMENT = "environment.json"
"""Versions, hardware and git state, as `medar.environment.environment` gives them."""

SETTINGS = "config.yaml"
"""The recipe's settings, resolved."""

NAMES = {
    "medar": "medar", "git.commit": "commit", "git.dirty": "changed since the commit",
    "python": "Python", "torch": "PyTorch", "hardware": "hardware",
}  # fmt: skip
"""What of it is shown, and as what. The host's name is nobody's business."""

RESEARCH = (
    "For research only. medar is not a medical device; neither the models nor the volumes are for "
    "diagnosis or treatment."
)

LIMITS = {
    SYNTHESIS: (
        "Synthetic volumes are made by a model, which may repeat what it was trained on. They can "
        "show anatomy that does not exist, and whatever bias the training data have.",
        "Distances see sharpness, texture and brightness, not whether anatomy is right. They are "
        "comparable only with the same data, plan, split, features and number of volumes.",
        "A distance at its floor means that these features do not tell the sets apart, not that a "
        "radiologist would not.",
        "The search for copies finds volumes that were copied whole. That none is found is no "
        "proof of privacy.",
    ),
    SEGMENTATION: (
        "Label maps are as good as the labels that were learnt from: a network repeats the habits "
        "of whoever annotated.",
        "Cases of this data set say little about other scanners, protocols and patients. Judge on "
        "cases of your own before label maps are used for anything.",
        "Intervals are over the subjects of one split and one training; another seed gives another "
        "network, and its figures may differ by as much.",
    ),
}
"""What a reader should keep in mind, by recipe."""


def versions(run: RunFolder) -> list[Block]:
    """Versions, machine and git state."""
    if not run.holds(ENVIRONMENT):
        raise LeftOut(f"the run did not note them (no {ENVIRONMENT})")
    found = run.object(ENVIRONMENT, "prepare")
    said = {"true": "yes", "false": "no"}
    rows = [
        (shown, said.get(str(found[name]), str(found[name])))
        for name, shown in NAMES.items()
        if name in found
    ]
    return [Table("Versions and machine", (), rows, words=True)]


def reproduce(run: RunFolder) -> list[Block]:
    """The commands that do it again, and the settings that they read."""
    if not run.holds(SETTINGS):
        raise LeftOut(f"the settings of the recipe are not there (no {SETTINGS})")
    settings = run.text(SETTINGS, "prepare")
    header = run.lines("prepared/manifest.jsonl", "prepare")[0]
    root = shlex.quote(str(header.get("root", "PATH")))
    commit = None
    if run.holds(ENVIRONMENT):
        commit = run.object(ENVIRONMENT, "prepare").get("git.commit")
    folder = run.path.absolute()
    here, config = (shlex.quote(str(path)) for path in (folder, folder / SETTINGS))
    lines = [
        *([f"git checkout {shlex.quote(commit)}"] if commit else []),
        f"medar run {run.recipe} {config} \\",
        f"    --data {root} --out runs/again",
        f"medar report {here}",
    ]
    return [
        Code("In a checkout of medar: the same run anew, and this report anew", "\n".join(lines)),
        Notes(
            [
                "Training that is limited by minutes makes as many steps as the machine "
                "allows; the result is the same bits only for the same number of steps on the same "
                "machine.",
                "The same model and seed give the same sample on one machine; another machine, or "
                "another version of PyTorch, rounds otherwise.",
            ]
        ),
        Code(f"{SETTINGS}: every setting, defaults included", settings, folded=True),
    ]


def limits(run: RunFolder) -> list[Block]:
    """What the report does not say."""
    return [Notes([RESEARCH, *LIMITS.get(run.recipe, ())])]
