"""`SegmentationRecipeSettings`: what the YAML of pipelines/segmentation.py holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from medar.data.planning import check_values
from medar.errors import MedarError
from medar.recipes.settings import DataSettings, check_budget, check_shares, placed
from medar.segmentation.prediction import PredictionSettings
from medar.segmentation.pretext.settings import PretrainSettings
from medar.segmentation.settings import SegmentationSettings
from medar.settings import STRICT
from medar.tokenizer.settings import TokenizerSettings


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How the label maps are judged; see `medar.evaluation.segmentation`.

    Raises:
        MedarError: a number out of its range.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    split: Literal["val", "test"] = "test"
    """Whose cases are segmented and judged."""
    tolerance: float | None = None
    """Of the surface Dice, in mm; default the largest side of the cases' median voxel."""
    seed: int = 0
    """Of bootstrap draws."""

    def __post_init__(self) -> None:
        if self.tolerance is not None and not 0 < self.tolerance < float("inf"):
            raise MedarError(f"evaluation tolerance {self.tolerance}: a number above 0 is needed")
        if self.seed < 0:
            raise MedarError(f"evaluation seed {self.seed}: a number from 0 is needed")


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Of a budget of time, by stage. Only trainings are held to theirs: the other stages take what
    they take, and what they leave goes to the stages after them.

    Raises:
        MedarError: a share that is not above 0.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    prepare: float = 2.0
    tokenizer: float = 25.0
    pretrain: float = 30.0
    train: float = 35.0
    predict: float = 4.0
    evaluate: float = 3.0
    report: float = 1.0

    def __post_init__(self) -> None:
        check_shares(vars(self))


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipeSettings:
    """The recipe from a data set to a segmentation network, its label maps and their report.

    Raises:
        MedarError: a budget that is not above 0, parts that do not go together, or values that no
            plan can have.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    data: DataSettings = field(default_factory=DataSettings)
    plan: dict[str, Any] = field(default_factory=dict)
    """Values of the plan that are given, besides those of the parts, which count more; the others
    are derived from the data set."""
    tokenizer: TokenizerSettings | None = None
    """Needed by every kind of pretraining but "masked", and by nothing else."""
    pretrain: PretrainSettings | None = None
    """Null: the network is trained from scratch."""
    segmentation: SegmentationSettings
    prediction: PredictionSettings = field(default_factory=PredictionSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    shares: Shares = field(default_factory=Shares)
    max_minutes: float | None = None
    """A budget for all stages together, divided by `shares`; usually given as --max-minutes."""

    def __post_init__(self) -> None:
        check_budget(self.max_minutes)
        self._check_parts()
        check_values(self.plan_values(), None)

    def _check_parts(self) -> None:
        """Refuse parts that cannot follow each other."""
        if self.pretrain is not None:
            if self.pretrain.pretext.tokenizer is not None:
                raise MedarError(
                    f"pretrain.pretext.tokenizer {self.pretrain.pretext.tokenizer}: the recipe "
                    "trains its own; leave it out, and name its settings in tokenizer"
                )
            if self.pretrain.backbone != self.segmentation.backbone:
                raise MedarError(
                    f"pretrain.backbone {self.pretrain.backbone} and segmentation.backbone "
                    f"{self.segmentation.backbone}: the same are needed"
                )
        if self.segmentation.data.fold is not None and self.evaluation.split == "val":
            raise MedarError(
                f"segmentation.data.fold {self.segmentation.data.fold}: trains on most cases of "
                "the split val, which evaluation.split val would judge by; take test, or no fold"
            )
        if self.wants_tokenizer and self.tokenizer is None:
            assert self.pretrain is not None
            raise MedarError(
                f"pretrain.pretext.kind {self.pretrain.pretext.kind}: predicts a tokenizer's "
                "tokens; give the settings of one in tokenizer, or take masked"
            )

    @property
    def wants_tokenizer(self) -> bool:
        """Whether pretraining asks for a tokenizer's tokens."""
        return self.pretrain is not None and self.pretrain.pretext.kind != "masked"

    @property
    def synthetic(self) -> Path | None:
        """The folder of synthetic pairs to train on, if there is one."""
        pairs = self.segmentation.data.synthetic
        return None if pairs is None else Path(pairs.folder)

    @property
    def layers(self) -> tuple[str, ...]:
        """Rooms of medar that lend the backbone their layers."""
        return ("tokenizer", "generator") if self.segmentation.backbone.kind == "trunk" else ()

    def plan_values(self) -> dict[str, Any]:
        """The values of the plan that are given, by the recipe or by its parts.

        Raises:
            MedarError: two parts that give different ones.
        """
        found: dict[str, Any] = {}
        for name in ("tokenizer", "pretrain", "segmentation"):
            part = getattr(self, name)
            given: Mapping[str, Any] = part.plan if part is not None else {}
            for key, value in given.items():
                if found.setdefault(key, value) != value:
                    raise MedarError(
                        f"{name}.plan.{key} {value}: another part gives {found[key]}; all parts "
                        "of a recipe see the same volumes"
                    )
        return {**self.plan, **found}

    def placed(self) -> "SegmentationRecipeSettings":
        """The same with absolute paths, so that they hold in another working directory too."""
        tokenizer, data = self.tokenizer, self.segmentation.data
        if data.synthetic is not None:
            folder = str(Path(data.synthetic.folder).absolute())
            data = replace(data, synthetic=replace(data.synthetic, folder=folder))
        return replace(
            self,
            data=self.data.placed(),
            tokenizer=None if tokenizer is None else placed(tokenizer),
            segmentation=replace(self.segmentation, data=data),
        )
