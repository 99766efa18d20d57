"""The training loop of all models; each model defines a `Task`."""

from typing import TYPE_CHECKING

from medar.lazy import lazy

if TYPE_CHECKING:
    from medar.training.folder import Resume as Resume
    from medar.training.loop import Outcome as Outcome
    from medar.training.loop import fit as fit
    from medar.training.settings import TrainingSettings as TrainingSettings
    from medar.training.task import Task as Task
    from medar.training.tracker import Tracker as Tracker

__getattr__ = lazy(
    "medar.training",
    (
        "medar.training.folder:Resume",
        "medar.training.loop:Outcome",
        "medar.training.loop:fit",
        "medar.training.settings:TrainingSettings",
        "medar.training.task:Task",
        "medar.training.tracker:Tracker",
    ),
)
