"""`SynthesisSettings`: what a recipe's YAML holds, its parts inline or in files of their own."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from medar.data.planning import check_values
from medar.errors import MedarError
from medar.generator.attributes import MODALITY
from medar.generator.sampling import SamplingSettings
from medar.generator.settings import GeneratorSettings
from medar.settings import STRICT, from_dict, overridden, read_yaml
from medar.tokenizer.settings import TokenizerSettings


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The data set."""

    __pydantic_config__: ClassVar[Any] = STRICT

    path: Path | None = None
    """Folder, dataset.json, JSONL manifest or single volume; usually given as --data."""
    attributes: Path | None = None
    """CSV or TSV with a row a case; default: the one in the folder."""
    modality: Literal["CT", "MR"] | None = None
    """For data sets that do not say what their volumes are."""
    seed: int = 0
    """Decides which subjects go to train, val and test where the data set does not. Once decided
    in a run's folder, that stays."""
    voxels: int | None = None
    """Voxels that a model sees at once, at most, where the plan is derived; default that of
    `medar data plan`."""
    workers: int | None = None
    """Processes that prepare; default one a processor."""

    def __post_init__(self) -> None:
        for name in ("voxels", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MedarError(f"data {name} {value}: a number from 1 is needed")


@dataclass(frozen=True, kw_only=True)
class SamplesSettings:
    """The volumes that are made.

    Raises:
        MedarError: a number out of its range.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    n: int = 20
    """How many."""
    seed: int = 0
    """Of the first; each further one has the next."""
    batch_size: int | None = None
    """Volumes at once; default as many as fit into memory."""
    previews: int = 2
    """Samples that are drawn after each scale too."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """What is asked for, by name; what is not named is left open."""
    modality: Literal["CT", "MR"] | None = None
    """Whose intensities, where the plan has several."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """How tokens are chosen."""

    def __post_init__(self) -> None:
        for name, least in (("n", 2), ("seed", 0), ("previews", 0)):
            if getattr(self, name) < least:
                raise MedarError(
                    f"samples {name} {getattr(self, name)}: at least {least} is needed"
                )
        if self.batch_size is not None and self.batch_size < 1:
            raise MedarError(f"samples batch_size {self.batch_size}: at least 1 is needed")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How the samples are judged; see `medar.evaluation.generation`.

    Raises:
        MedarError: extractors that there are not, or not with these weights.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    split: Literal["val", "test", "held-out"] = "held-out"
    """The real volumes behind the floors; held-out is all but the train split."""
    extractors: tuple[str, ...] = ("radiomics-v1", "texture-v1")
    """Features to compare; the first also serves the search for copies."""
    weights: Path | None = None
    """Local file of weights, for extractors that are learnt."""
    seed: int = 0
    """Of bootstrap draws, subsets and pairs."""

    def __post_init__(self) -> None:
        from medar.evaluation.extractors import check_extractors

        check_extractors(self.extractors, self.weights)


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Of a budget of time, by stage. Only trainings are held to theirs: the other stages take what
    they take, and what they leave goes to the stages after them.

    Raises:
        MedarError: a share that is not above 0.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    prepare: float = 2.0
    tokenizer: float = 40.0
    tokens: float = 4.0
    generator: float = 45.0
    synthesize: float = 4.0
    evaluate: float = 4.0
    report: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < float("inf"):
                raise MedarError(f"shares {name} {value}: a number above 0 is needed")


@dataclass(frozen=True, kw_only=True)
class SynthesisSettings:
    """The recipe from a data set to synthetic volumes and their report.

    Raises:
        MedarError: a budget that is not above 0, values that no plan can have, or samples that the
            generator could not be asked for.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    data: DataSettings = field(default_factory=DataSettings)
    plan: dict[str, Any] = field(default_factory=dict)
    """Values of the plan that are given, besides those of the tokenizer's settings, which count
    more; the others are derived from the data set."""
    tokenizer: TokenizerSettings
    generator: GeneratorSettings
    samples: SamplesSettings = field(default_factory=SamplesSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    shares: Shares = field(default_factory=Shares)
    max_minutes: float | None = None
    """A budget for all stages together, divided by `shares`; usually given as --max-minutes."""

    def __post_init__(self) -> None:
        if self.max_minutes is not None and not 0 < self.max_minutes < float("inf"):
            raise MedarError(f"max_minutes {self.max_minutes}: a number above 0 is needed")
        check_values(self.plan_values(), None)
        named = self.generator.condition.attributes
        known = (MODALITY,) if named is None else named
        odd = [name for name in self.samples.attributes if name not in known]
        if odd:
            raise MedarError(
                f"samples attribute {odd[0]!r}: the generator is to learn {', '.join(known) or '-'}"
                "; name it in generator.condition.attributes too"
            )

    def plan_values(self) -> dict[str, Any]:
        """The values of the plan that are given."""
        return {**self.plan, **self.tokenizer.plan}

    def placed(self) -> "SynthesisSettings":
        """The same with absolute paths, so that they hold in another working directory too."""
        data, evaluation, loss = self.data, self.evaluation, self.tokenizer.loss
        return replace(
            self,
            data=replace(data, path=_absolute(data.path), attributes=_absolute(data.attributes)),
            evaluation=replace(evaluation, weights=_absolute(evaluation.weights)),
            tokenizer=replace(
                self.tokenizer,
                loss=replace(loss, perceptual_file=_absolute(loss.perceptual_file)),
            ),
        )


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> SynthesisSettings:
    """Read a recipe's YAML.

    A part that is a text names a file of its settings, relative to the YAML:
    `tokenizer: tokenizer/demo.yaml`. Overrides come after that.

    Args:
        path: the file.
        overrides: values that replace the file's, as `key.below=value`, the value in YAML.

    Raises:
        MedarError: one line that names the file, the key, the value and what is allowed.
    """
    path = Path(path)
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise MedarError(f"{path}: a mapping of settings is needed, not {type(values).__name__}")
    values = {
        name: read_yaml(path.parent / part) if isinstance(part, str) else part
        for name, part in values.items()
    }
    where = f"{path} with {' '.join(overrides)}" if overrides else str(path)
    return from_dict(SynthesisSettings, overridden(values, overrides), where)


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()
