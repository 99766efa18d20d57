"""`SynthesisSettings`: what the YAML of pipelines/synthesis.py holds."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from medar.data.planning import check_values
from medar.errors import MedarError
from medar.generator.attributes import MODALITY
from medar.generator.settings import GeneratorSettings, SamplingSettings
from medar.recipes.settings import DataSettings, absolute, check_budget, check_shares, placed
from medar.settings import STRICT
from medar.tokenizer.settings import TokenizerSettings


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
        check_shares(vars(self))


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
        check_budget(self.max_minutes)
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
        evaluation = self.evaluation
        return replace(
            self,
            data=self.data.placed(),
            evaluation=replace(evaluation, weights=absolute(evaluation.weights)),
            tokenizer=placed(self.tokenizer),
        )
