"""The training loop of all models; each model defines a `Task`."""

from medar.training.folder import Resume as Resume
from medar.training.loop import Outcome as Outcome
from medar.training.loop import fit as fit
from medar.training.settings import TrainingSettings as TrainingSettings
from medar.training.task import Task as Task
from medar.training.tracker import Tracker as Tracker
