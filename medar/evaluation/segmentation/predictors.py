"""Where label maps come from: a network, or finished files."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medar.data.loading import UNKNOWN
from medar.data.plan import Plan
from medar.data.preparation import prepare_image, prepare_label, restore_label
from medar.evaluation.segmentation.cases import Judged, JudgedCase, find_files
from medar.evaluation.segmentation.metrics import Calibration, CalibrationMeter
from medar.files import digest, file_digest
from medar.segmentation.folder import model_digest
from medar.segmentation.network import Segmenter
from medar.segmentation.prediction import DEFAULT, PredictionSettings, chances_of
from medar.settings import to_dict
from medar.volume import Volume


class Predictor(ABC):
    """Gives a label map for each case.

    Args:
        name: for reports.
    """

    plan: Plan | None = None
    """What a model was trained under; None for files."""

    def __init__(self, name: str) -> None:
        self.name = name

    def begin(self, data: Judged) -> None:
        """Get ready for the cases of an evaluation.

        Raises:
            MedarError: it cannot be done for all of them.
        """
        return

    @abstractmethod
    def predict(self, judged: JudgedCase) -> Volume:
        """The label map of a case, on the grid of its image."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What made the label maps, for the protocol: `digest`, and what else matters."""

    def calibration(self) -> Calibration | None:
        """Of all cases since `begin`; None where there are no chances."""
        return None


class NetworkPredictor(Predictor):
    """A segmentation network, as `medar segment` uses it.

    Args:
        model: in evaluation mode; computes on the device that it is on.
        name: for reports.
        settings: how volumes are segmented.
    """

    def __init__(
        self, model: Segmenter, name: str = "model", settings: PredictionSettings = DEFAULT
    ) -> None:
        super().__init__(name)
        self.model, self.settings = model, settings
        self.plan = model.plan
        self._of_truth = model.plan
        self._meter = CalibrationMeter()

    def begin(self, data: Judged) -> None:
        """Forget the cases of another evaluation."""
        self._of_truth = replace(self.model.plan, ignore_label=data.labels.ignore)
        self._meter = CalibrationMeter()

    def predict(self, judged: JudgedCase) -> Volume:
        """Segment a case; on the way its chances are compared with the truth."""
        plan, image = self.model.plan, judged.image
        image = replace(image, modality=image.modality or plan.sole_modality)
        array, trace = prepare_image(image, plan)
        truth = None
        if set(judged.annotated) == set(plan.labels):
            label = prepare_label(judged.truth, trace.target, self._of_truth)
            truth = _classes(label, self._of_truth)
        classes = np.zeros((1, *array.shape[1:]), np.int16)
        for place, chances in chances_of(self.model, torch.from_numpy(array.copy()), self.settings):
            classes[place] = chances.argmax(1).numpy()
            if truth is not None:
                self._meter.update(chances, truth[place])
        values = np.array([0, *plan.labels], dtype=plan.label_dtype)
        return restore_label(values[classes], trace)

    def about(self) -> dict[str, Any]:
        """The network's digest, its plan's, and how it predicts."""
        mirrors = self.settings.mirrors
        return {
            "digest": model_digest(self.model),
            "plan": self.model.plan.digest,
            "prediction": {
                **to_dict(self.settings),
                "mirrors": list(self.model.mirrors if mirrors is None else mirrors),
            },
            "device": next(self.model.parameters()).device.type,
        }

    def calibration(self) -> Calibration | None:
        """Of the chances on the prepared grid."""
        return self._meter.result()


class FilesPredictor(Predictor):
    """Finished label maps, whatever made them: a file CASE.nii.gz (or another format) each.

    Args:
        folder: holds them.
        name: for reports; default the folder's path.
        network: the network that made the files; it predicts again for the calibration, which
            label maps cannot give.
    """

    def __init__(
        self, folder: str | Path, name: str | None = None, network: NetworkPredictor | None = None
    ) -> None:
        super().__init__(name or str(folder))
        self.folder, self.network = Path(folder), network
        self.plan = None if network is None else network.plan
        self._data: Judged | None = None
        self._files: dict[str, Path] = {}

    def begin(self, data: Judged) -> None:
        """Find the file of each case."""
        self._data, self._files = data, find_files(self.folder, data.cases)
        if self.network is not None:
            self.network.begin(data)

    def predict(self, judged: JudgedCase) -> Volume:
        """Read a case's file."""
        assert self._data is not None, "begin comes first"
        if self.network is not None:
            self.network.predict(judged)
        case = judged.case
        return self._data.read_label(case, judged.image, self._files[case.id])

    def about(self) -> dict[str, Any]:
        """A digest of the files, and what made them if that is known."""
        found = {"digest": digest({k: file_digest(path) for k, path in self._files.items()})}
        return found if self.network is None else {**found, "network": self.network.about()}

    def calibration(self) -> Calibration | None:
        """Of the network that made the files, if it is known."""
        return None if self.network is None else self.network.calibration()


def _classes(label: npt.NDArray[Any], plan: Plan) -> Tensor:
    """Label values as classes: 0 the background, i + 1 the i-th label, -1 unknown."""
    classes = np.zeros(label.shape, np.int16)
    for place, value in enumerate(plan.labels, 1):
        classes[label == value] = place
    if plan.ignore_label is not None:
        classes[label == plan.ignore_label] = UNKNOWN
    return torch.from_numpy(classes)


def as_predictors(
    models: "Segmenter | Predictor | Sequence[Segmenter | Predictor]",
    settings: PredictionSettings,
) -> list[Predictor]:
    """Networks as predictors, named "model", or "model 1", "model 2"... where there are several."""
    several = list(models) if isinstance(models, Sequence) else [models]
    found: list[Predictor] = []
    for number, one in enumerate(several, 1):
        if isinstance(one, Predictor):
            found.append(one)
        else:
            name = "model" if len(several) == 1 else f"model {number}"
            found.append(NetworkPredictor(one, name, settings))
    return found
