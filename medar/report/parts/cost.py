"""What the run took: time and memory, stage by stage."""

from typing import Any

from medar.report.blocks import Block, LeftOut, Picture, Table, Text
from medar.report.charts import lying_bars
from medar.report.folder import SEGMENTATION, RunFolder
from medar.report.parts.likeness import GENERATION
from medar.report.words import NONE, duration, memory, moment, number


def cost(run: RunFolder) -> list[Block]:
    """Time and memory from the ledger."""
    if not run.stages:
        raise LeftOut("the run has no ledger (no stages/)")
    timed = [one for one in run.stages.values() if one.seconds]
    rows = [
        (one.name, one.status, moment(one.started, short=True), duration(one.seconds or None),
         memory(one.peak_mib), str(one.attempts))
        for one in run.stages.values()
    ]  # fmt: skip
    blocks: list[Block] = []
    if timed:
        said = [duration(one.seconds) for one in timed]
        pairs = ", ".join(f"{one.name} {time}" for one, time in zip(timed, said, strict=True))
        blocks.append(
            Picture(
                "time.svg",
                lying_bars([one.name for one in timed], [one.seconds or 0 for one in timed], said),
                f"Bar chart of the time of each stage: {pairs}.",
                "Time of each stage by the clock, all its attempts together save those that were "
                "killed.",
            )
        )
    headings = ("stage", "status", "begun (UTC)", "time", "peak memory", "attempts")
    blocks.append(Table("Stages", headings, rows))
    facts = [
        (f"{one.name}: {name}", _shown(value))
        for one in run.stages.values()
        for name, value in one.facts.items()
    ]
    if facts:
        blocks.append(Table("What the stages said", (), facts, words=True, folded=True))
    return [*blocks, *_sampling(run)]


def _sampling(run: RunFolder) -> list[Block]:
    """Seconds and memory of one synthetic volume, where they were measured."""
    if run.recipe == SEGMENTATION or not run.holds(GENERATION):
        return []
    report = run.object(GENERATION, "evaluate")
    if report["seconds_per_volume"] is None:
        return []
    peak = report["peak_memory"]
    with_memory = f", {memory(peak / 2**20)} of memory at most" if peak is not None else ""
    return [
        Text(f"A synthetic volume takes {number(report['seconds_per_volume'])} s{with_memory}.")
    ]


def _shown(value: Any) -> str:
    """A fact in words."""
    if value is None:
        return NONE
    return number(value, 4) if isinstance(value, float) else str(value)
