"""Settings of the recipes: what their YAML files hold, and how these are read.

A part of a recipe (`tokenizer`, `generator`, ...) is given inline or in a file of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from medar.data.planning import check_values
from medar.errors import MedarError
from medar.generator.attributes import MODALITY
from medar.generator.settings import GeneratorSettings, SamplingSettings
from medar.segmentation.pretext.settings import PretrainSettings
from medar.segmentation.settings import SegmentationSettings
from medar.segmentation.sliding_window import PredictionSettings
from medar.settings import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    from_dict,
    overridden,
    read_yaml,
    settings,
)
from medar.tokenizer.settings import DetailSettings, TokenizerSettings

T = TypeVar("T")

RENAMED = {"shares": "budget_weights"}


@settings
class DataSettings:
    """The data set."""

    path: Path | None = None
    """Folder, dataset.json, JSONL manifest or single volume; usually given as --data."""
    attributes: Path | None = None
    """CSV or TSV table with one row per case; default: the one in the folder."""
    modality: Literal["CT", "MR"] | None = None
    """For volumes that do not state their modality; usually given as --modality."""
    keep_attributes: tuple[str, ...] = ()
    """Attributes to keep although they may identify people, by name; "all": all."""
    seed: NonNegativeInt = 0
    """Seeds the splits of subjects, where the data set defines none. A run keeps its splits."""
    voxels: PositiveInt | None = None
    """Maximum number of voxels that a model sees at once, if the plan is derived; default: that of
    `medar data plan`."""
    workers: PositiveInt | None = None
    """Processes that prepare; default: one per CPU core."""


@settings
class SamplesSettings:
    """The volumes to synthesize."""

    n: int = 20
    """Number of volumes, at least 2."""
    seed: NonNegativeInt = 0
    """Seed of the first volume; each further one adds 1."""
    batch_size: PositiveInt | None = None
    """Volumes per batch; default: limited by memory."""
    previews: NonNegativeInt = 2
    """Number of volumes to draw after each scale."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """Attributes to condition on, by name; others are unspecified."""
    modality: Literal["CT", "MR"] | None = None
    """Modality of the intensities, if the plan has several."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)

    def __post_init__(self) -> None:
        if self.n < 2:
            raise MedarError(f"n must be at least 2, got {self.n}")


@settings
class GenerationEvaluationSettings:
    """How synthetic volumes are compared with real ones; see `medar.evaluation.generation`."""

    split: Literal["val", "test", "held-out"] = "held-out"
    """Real volumes behind the floors; "held-out" is all but the train split."""
    extractors: tuple[str, ...] = ("radiomics-v2", "texture-v2")
    """Features to compare; the first is also used to search for copies."""
    weights: Path | None = None
    """Local file of weights, for learned extractors."""
    seed: NonNegativeInt = 0
    """Seeds bootstrap draws, subsets and pairs."""
    turing: bool = False
    """Train small networks to tell the volumes from real ones, and write a test for readers."""

    def __post_init__(self) -> None:
        from medar.evaluation.extractors import check_extractors

        check_extractors(self.extractors, self.weights)


@settings
class SegmentationEvaluationSettings:
    """How label maps are evaluated; see `medar.evaluation.segmentation`."""

    split: Literal["val", "test"] = "test"
    """Cases that are segmented and evaluated."""
    tolerance: PositiveFloat | None = None
    """Tolerance of the surface Dice in mm; default: largest side of the cases' median voxel."""
    seed: NonNegativeInt = 0
    """Seeds bootstrap draws."""


@settings
class SynthesisWeights:
    """Relative parts of a time budget. They limit trainings only; time that other stages do not use
    goes to the stages after them."""

    prepare: PositiveFloat = 2.0
    tokenizer: PositiveFloat = 40.0
    detail: PositiveFloat = 20.0
    tokens: PositiveFloat = 4.0
    generator: PositiveFloat = 45.0
    synthesize: PositiveFloat = 4.0
    evaluate: PositiveFloat = 4.0
    report: PositiveFloat = 1.0


@settings
class SegmentationWeights:
    """Parts of a time budget, as in `SynthesisWeights`."""

    prepare: PositiveFloat = 2.0
    tokenizer: PositiveFloat = 25.0
    pretrain: PositiveFloat = 30.0
    train: PositiveFloat = 35.0
    predict: PositiveFloat = 4.0
    evaluate: PositiveFloat = 3.0
    report: PositiveFloat = 1.0


@settings(renamed=RENAMED)
class SynthesisSettings:
    """The recipe from a data set to synthetic volumes and their report.

    Raises:
        MedarError: values that no plan can have, or attributes of samples that the generator does
            not learn.
    """

    data: DataSettings = field(default_factory=DataSettings)
    plan: dict[str, Any] = field(default_factory=dict)
    """Values of the plan, below those of the tokenizer's settings; others are derived from the
    data set."""
    tokenizer: TokenizerSettings
    detail: DetailSettings | None = None
    """Settings of the detail decoder; null: none, and volumes as smooth as the tokenizer makes
    them."""
    generator: GeneratorSettings
    samples: SamplesSettings = field(default_factory=SamplesSettings)
    evaluation: GenerationEvaluationSettings = field(default_factory=GenerationEvaluationSettings)
    budget_weights: SynthesisWeights = field(default_factory=SynthesisWeights)
    max_minutes: PositiveFloat | None = None
    """Time budget of all stages together; usually given as --max-minutes."""

    def __post_init__(self) -> None:
        check_values(self.plan_values(), None)
        named = self.generator.condition.attributes
        learned = (MODALITY,) if named is None else named
        unknown = [name for name in self.samples.attributes if name not in learned]
        if unknown:
            raise MedarError(
                f"samples.attributes: the generator does not learn {unknown[0]!r}, only "
                f"{', '.join(learned) or 'none'}; name it in generator.condition.attributes too"
            )

    def plan_values(self) -> dict[str, Any]:
        """The values of the plan in the settings."""
        return {**self.plan, **self.tokenizer.plan}

    def with_absolute_paths(self) -> "SynthesisSettings":
        """The same settings, valid in any working directory."""
        evaluation = self.evaluation
        return replace(
            self,
            data=_data_with_absolute_paths(self.data),
            evaluation=replace(evaluation, weights=_absolute(evaluation.weights)),
            tokenizer=_tokenizer_with_absolute_paths(self.tokenizer),
        )


@settings(renamed=RENAMED)
class SegmentationRecipeSettings:
    """The recipe from a data set to a segmentation network, its label maps and their report.

    Raises:
        MedarError: parts that contradict each other, or values that no plan can have.
    """

    data: DataSettings = field(default_factory=DataSettings)
    plan: dict[str, Any] = field(default_factory=dict)
    """Values of the plan, below those of the parts; others are derived from the data set."""
    tokenizer: TokenizerSettings | None = None
    """Settings of the tokenizer; required for pretraining, except with the kind "masked"."""
    pretrain: PretrainSettings | None = None
    """Null trains the network from scratch."""
    segmentation: SegmentationSettings
    prediction: PredictionSettings = field(default_factory=PredictionSettings)
    evaluation: SegmentationEvaluationSettings = field(
        default_factory=SegmentationEvaluationSettings
    )
    budget_weights: SegmentationWeights = field(default_factory=SegmentationWeights)
    max_minutes: PositiveFloat | None = None
    """Time budget of all stages together; usually given as --max-minutes."""

    def __post_init__(self) -> None:
        pretrain = self.pretrain
        if pretrain is not None:
            if pretrain.pretext.tokenizer is not None:
                raise MedarError(
                    f"pretrain.pretext.tokenizer: leave out {pretrain.pretext.tokenizer}; the "
                    "recipe trains a tokenizer by the settings in tokenizer"
                )
            if pretrain.backbone != self.segmentation.backbone:
                raise MedarError(
                    "pretrain.backbone and segmentation.backbone must be equal, got "
                    f"{pretrain.backbone} and {self.segmentation.backbone}"
                )
            if self.needs_tokenizer and self.tokenizer is None:
                raise MedarError(
                    f"pretrain.pretext.kind {pretrain.pretext.kind}: needs a tokenizer; give its "
                    "settings in tokenizer, or use masked"
                )
        if self.segmentation.data.fold is not None and self.evaluation.split == "val":
            raise MedarError(
                f"segmentation.data.fold {self.segmentation.data.fold}: trains on most cases of "
                "the split val; evaluate on test (evaluation.split), or leave the fold out"
            )
        check_values(self.plan_values(), None)

    @property
    def needs_tokenizer(self) -> bool:
        """Whether pretraining predicts the tokens of a tokenizer."""
        return self.pretrain is not None and self.pretrain.pretext.needs_tokenizer

    @property
    def synthetic(self) -> Path | None:
        """Folder of synthetic pairs to train on, if there is one."""
        pairs = self.segmentation.data.synthetic
        return None if pairs is None else Path(pairs.folder)

    def plan_values(self) -> dict[str, Any]:
        """The values of the plan in the settings of the recipe and of its parts.

        Raises:
            MedarError: two parts give different values.
        """
        values: dict[str, Any] = {}
        for name in ("tokenizer", "pretrain", "segmentation"):
            part = getattr(self, name)
            plan: Mapping[str, Any] = part.plan if part is not None else {}
            for key, value in plan.items():
                if values.setdefault(key, value) != value:
                    raise MedarError(
                        f"{name}.plan.{key} is {value}, another part has {values[key]}; all parts "
                        "of a recipe must have the same plan"
                    )
        return {**self.plan, **values}

    def with_absolute_paths(self) -> "SegmentationRecipeSettings":
        """The same settings, valid in any working directory."""
        tokenizer, data = self.tokenizer, self.segmentation.data
        if data.synthetic is not None:
            folder = str(Path(data.synthetic.folder).absolute())
            data = replace(data, synthetic=replace(data.synthetic, folder=folder))
        return replace(
            self,
            data=_data_with_absolute_paths(self.data),
            tokenizer=None if tokenizer is None else _tokenizer_with_absolute_paths(tokenizer),
            segmentation=replace(self.segmentation, data=data),
        )


def load_recipe(kind: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read a recipe's YAML.

    A part that is a string names a file with its settings, relative to the YAML:
    `tokenizer: tokenizer/demo.yaml`. Overrides are applied after that.

    Args:
        kind: the recipe's settings.
        path: the file.
        overrides: values that replace those of the file, as `key.below=value` in YAML.

    Raises:
        MedarError: one line that names the file, the key, the value and what is allowed.
    """
    path = Path(path)
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise MedarError(f"{path}: must hold a mapping of settings, got {type(values).__name__}")
    values = {
        name: _read_part(path, name, part) if isinstance(part, str) else part
        for name, part in values.items()
    }
    where = f"{path} with {' '.join(overrides)}" if overrides else str(path)
    return from_dict(kind, overridden(values, overrides), where)


def _read_part(path: Path, name: str, part: str) -> Any:
    """The settings in a file that a recipe's YAML names."""
    from medar.recipes.configs import near_file

    file = path.parent / part
    if not file.exists():
        near = near_file(file)
        hint = f"; did you mean {near!r}?" if near else ""
        raise MedarError(f"{path}: {name}: {file}: no such file{hint}")
    return read_yaml(file)


def _data_with_absolute_paths(data: DataSettings) -> DataSettings:
    return replace(data, path=_absolute(data.path), attributes=_absolute(data.attributes))


def _tokenizer_with_absolute_paths(tokenizer: TokenizerSettings) -> TokenizerSettings:
    loss = tokenizer.loss
    return replace(tokenizer, loss=replace(loss, perceptual_file=_absolute(loss.perceptual_file)))


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()
