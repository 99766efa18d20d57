"""The report about a run: its content, missing sections, damaged files, no external links."""

import base64
import hashlib
import json
import re
import shutil
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from medar.errors import MedarError
from medar.evaluation.generation.turing import TuringReport
from medar.files import read_json, write_json
from medar.records import SYNTHESIS
from medar.report.blocks import Table, Text
from medar.report.charts import Distance, distance_chart
from medar.report.folder import DEFAULT_STAGES, RunFolder
from medar.report.run import SECTIONS, make_report, write_report
from medar.report.sections.turing import turing_blocks

EMBEDDED = re.compile(r'src="data:image/(png|svg\+xml);base64,([^"]+)"')

SET_ASIDE = "1 of 5 cases was set aside: five (voxels are <script>alert(1)</script>|*x*)."


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "small"))


@pytest.fixture
def undrawn(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave charts empty, to be quick."""
    monkeypatch.setattr(Figure, "savefig", lambda _, file, **__: file.write("<svg></svg>"))


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run_has_every_section(run: Path) -> None:
    report = make_report(RunFolder(run))
    assert report.missing == []
    assert [section.title for section in report.sections] == [
        part.title for part in SECTIONS[SYNTHESIS]
    ]
    assert report.warnings == [SET_ASIDE]
    assert report.subtitle == "A run of medar, finished 4 March 2026, 05:20 UTC"


@pytest.mark.usefixtures("undrawn")
def test_damaged_label_maps_are_told_from_cases(run: Path) -> None:
    file = run / "prepared" / "failed.jsonl"
    more = [{"id": f"c{n}", "reason": "empty", "part": "label"} for n in range(5)]
    file.write_text(file.read_text() + "".join(json.dumps(one) + "\n" for one in more))
    assert make_report(RunFolder(run)).warnings == [
        SET_ASIDE,
        "5 label maps of 5 cases were set aside: c0 (empty), c1 (empty), c2 (empty) and 2 more.",
    ]


@pytest.mark.usefixtures("undrawn")
def test_the_text_describes_the_run(run: Path) -> None:
    text = write_report(run).read_text().replace("\u00a0", " ")
    for sentence in (
        "4 CT volumes of hearts were resampled to 6 × 4 × 6 voxels of 1 × 1 × 2 mm.",
        "trained for 20 steps in 1 min 59 s, encodes each volume as 27 tokens on 3 grids",
        "A generator with 1.25 million parameters, trained for 30 steps in 1 min 30 s,",
        "It generated 3 synthetic volumes.",
        "texture-v2: synthetic volumes are at 6 × the floor, the distance of held-out real ones.",
        "synthetic and held-out real volumes are indistinguishable",
        "Frechet distance of 6 reconstructions as a set: 100; of as many originals: 12.",
        "Features that contribute most: detail_0 (fine detail, 50 % of the distance, 3.2 standard "
        "deviations too low), octant_000 (brightness of an eighth of the volume, 12.5 % of the "
        "distance, 1.0 standard deviations too high).",
        "1.00 in the lowest, 0.90 in the middle and 0.60 in the highest third",
        "radiomics-v2, N = 2",
        "power in the low third of frequencies",
        "grid artifact (95 % interval 1.25 to 1.75)",
        "Synthetic volumes are more similar to each other than real ones.",
        "Synthetic volumes give themselves away: the AUC is 0.97 (0.88 to 1.00)",
        "<td>0.25</td>",
        '<p class="note">Turing test on 3 volumes per side</p>',
        "halves of the real volumes 0.25",
        "1 synthetic volume may be copied",
        "excluded: five, voxels are ",
        "2 training, 1 validation, 1 test",
        "a number; 41.5 ± 1 in training",
        "Generating one volume takes 1.5 s and up to 1.0 GiB of memory.",
        "git checkout abc123",
        "For research only.",
    ):
        assert sentence in text, sentence
    assert "secret" not in text  # the name of the machine


@pytest.mark.parametrize(
    ("auc", "interval", "words"),
    [
        (0.55, (0.45, 0.65), "They cannot, with 9 volumes of each kind: the AUC is 0.55"),
        (0.7, (0.6, 0.8), "They can, to some degree: the AUC is 0.70 (0.60 to 0.80)"),
        (0.2, (0.1, 0.4), "They are wrong more often than chance explains"),
    ],
)
def test_the_verdict_of_the_turing_test_follows_from_the_interval(
    auc: float, interval: tuple[float, float], words: str
) -> None:
    report = TuringReport(
        volumes=9, held_out=9, auc=auc, interval=interval, floor_volumes=0, floor=None,
        floor_interval=None, scores=[], notes=[], protocol={},
    )  # fmt: skip
    text, table = turing_blocks(report)
    assert isinstance(text, Text)
    assert words in text.text
    assert isinstance(table, Table)
    assert table.rows[1] == ("two halves of the real volumes", "0", "–", "–")


def test_a_run_without_turing_test_has_no_such_figures(run: Path) -> None:
    path = run / "evaluation" / "report.json"
    write_json(path, {**read_json(path), "turing": None})
    report = make_report(RunFolder(run))
    assert report.missing == []
    assert "Turing" not in repr(report)
    assert "told from real" not in repr(report)


def test_the_report_has_no_external_links(run: Path) -> None:
    text = write_report(run).read_text()
    assert text.count("<script") == 1
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = f"img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\">"
    assert f"content=\"default-src 'none'; {policy}" in text
    pictures = EMBEDDED.findall(text)
    drawn = [path for path in (run / "report").iterdir() if path.suffix != ".csv"]
    assert len(pictures) == text.count("<img") == len(drawn)
    for kind, data in pictures:
        content = base64.b64decode(data)
        if kind == "png":
            assert content.startswith(b"\x89PNG")
            continue
        root = xml.etree.ElementTree.fromstring(content)
        names = [name for element in root.iter() for name in element.attrib]
        links = [element.get("{http://www.w3.org/1999/xlink}href") for element in root.iter()]
        assert "src" not in names
        assert all(link is None or link.startswith("#") for link in links)
        assert not re.search(rb"url\((?!#)", content)
    words = re.sub(r'"data:[a-z/]+;base64,[^"]+"', "", EMBEDDED.sub("", text))
    assert not re.search(r"https?:|//[a-z]|@import", words)


@pytest.mark.usefixtures("undrawn")
def test_html_in_names_is_escaped(run: Path) -> None:
    page = write_report(run)
    indices = "five, voxels are {}<", "<td>Bonn (2), {} (2)</td>", "<td>{}</td><td>voxels</td>"
    for index in indices:
        assert index.format("&lt;script&gt;alert(1)&lt;/script&gt;|*x*") in page.read_text()
    markdown = page.with_suffix(".md").read_text()
    assert "<script" not in markdown
    assert r"&lt;script>alert(1)&lt;/script>\|\*x\*" in markdown


def test_the_same_files_give_the_same_report(run: Path) -> None:
    page = write_report(run)
    first = page.read_bytes(), (run / "report.md").read_bytes()
    assert (write_report(run).read_bytes(), (run / "report.md").read_bytes()) == first


@pytest.mark.usefixtures("undrawn")
def test_the_markdown_report_has_the_same_content(run: Path) -> None:
    markdown = write_report(run).with_suffix(".md").read_text()
    for part in SECTIONS[SYNTHESIS]:
        assert f"\n## {part.title}\n" in markdown
    linked = re.findall(r"\[[^\]]+\]\((report/[^)]+)\)", markdown)
    assert sorted(linked) == sorted(f"report/{path.name}" for path in (run / "report").iterdir())
    for row in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        bars = [len(re.findall(r"(?<!\\)\|", line)) for line in row.splitlines()]
        assert len(set(bars)) == 1, row


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("gone", "titles"),
    [
        ("prepared", ["Slices to scroll through", "Data", "Reproduce this run"]),
        ("tokenizer/metrics.jsonl", ["Tokenizer: training"]),
        (
            "tokenizer/evaluation",
            ["Tokenizer: reconstruction", "Tokenizer: codebook usage by scale"],
        ),
        ("generator", ["Conditions", "Generator: training"]),
        ("samples/preview.png", ["Coarse to fine"]),
        ("evaluation", ["Distance from real volumes", "Diversity", "Search for copies"]),
        ("environment.json", ["Versions"]),
        ("config.yaml", ["Reproduce this run"]),
        ("stages", ["Time and memory"]),
        ("evaluation/contact_sheet.png", []),
    ],
)
def test_sections_without_files_are_listed_as_missing(
    run: Path, gone: str, titles: list[str]
) -> None:
    path = run / gone
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    report = make_report(RunFolder(run))
    assert [title for title, _ in report.missing] == titles
    text = write_report(run).read_text()
    for title, why in report.missing:
        assert f"<li><b>{title}</b>: {why}</li>" in text
        assert f'-title">{title}</h2>' not in text


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_failed_midway(run: Path) -> None:
    for name in ("samples", "evaluation"):
        shutil.rmtree(run / name)
    (run / "generator" / "metrics.jsonl").unlink()
    stage = read_json(run / "stages" / "generator.json")
    write_json(run / "stages" / "generator.json", {**stage, "status": "failed"})
    for name in DEFAULT_STAGES[SYNTHESIS][-2:]:
        (run / "stages" / f"{name}.json").unlink()
    report = make_report(RunFolder(run))
    assert report.warnings == [
        SET_ASIDE, "The stage generator failed.", "Not run: synthesize and evaluate.",
    ]  # fmt: skip
    assert report.subtitle == "A run of medar, as of 4 March 2026, 03:20 UTC"
    missing = dict(report.missing)
    assert missing["Generator: training"] == (
        "the stage generator failed (no generator/metrics.jsonl)"
    )
    assert missing["Diversity"] == "the stage evaluate has not run (no evaluation/report.json)"
    assert "It generated" not in write_report(run).read_text()


@pytest.mark.usefixtures("undrawn")
def test_results_of_an_earlier_run_are_not_reported(run: Path) -> None:
    names = [name for name in DEFAULT_STAGES[SYNTHESIS] if name != "tokenizer"]
    write_json(run / "recipe.json", {"recipe": SYNTHESIS, "stages": [*names, "report"]})
    report = make_report(RunFolder(run))
    assert dict(report.missing)["Tokenizer: training"] == "the run has no stage tokenizer"
    assert "A tokenizer" not in write_report(run).read_text()


def _cut_last_line(run: Path) -> None:
    with (run / "tokenizer" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "train/lo')


def _cut_first_line(run: Path) -> None:
    (run / "tokenizer" / "metrics.jsonl").write_text('{"step"\n{"step": 40, "train/loss": 1.0}\n')


def _other_keys(run: Path) -> None:
    write_json(run / "evaluation" / "report.json", {"volumes": 3})


def _no_json(run: Path) -> None:
    (run / "prepared" / "fingerprint.json").write_text("{")


def _no_object(run: Path) -> None:
    (run / "prepared" / "cases.jsonl").write_text('{"plan": "digest"}\n3\n')


def _cut_picture(run: Path) -> None:
    path = run / "evaluation" / "contact_sheet.png"
    path.write_bytes(path.read_bytes()[:-20])


def _folder_for_a_file(run: Path) -> None:
    (run / "config.yaml").unlink()
    (run / "config.yaml").mkdir()


def _nothing_measured(run: Path) -> None:
    for name in ("tokenizer", "generator"):
        (run / name / "metrics.jsonl").write_text("")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_no_object, {"Data": "each line must hold a JSON object"}),
        (_cut_picture, {"Synthetic volumes": "not a complete PNG"}),
        (_folder_for_a_file, {"Reproduce this run": "cannot be read"}),
        (_nothing_measured, dict.fromkeys(["Tokenizer: training", "Generator: training"],
                                          "before anything was logged")),
        (_cut_last_line, {}),
        (_cut_first_line, {"Tokenizer: training": "damaged"}),
        (_no_json, {"Data": "not valid JSON"}),
        (
            _other_keys,
            dict.fromkeys(
                ["Synthetic volumes", "Slices to scroll through", "Sample by sample",
                 "Distance from real volumes", "Diversity", "Search for copies",
                 "Time and memory"],
                "is missing",
            ),
        ),
    ],
)  # fmt: skip
def test_a_damaged_file_affects_only_its_section(
    run: Path, damage: Callable[[Path], None], expected: dict[str, str]
) -> None:
    damage(run)
    report = make_report(RunFolder(run))
    assert "Summary" in [section.title for section in report.sections]
    absent = dict(report.missing)
    assert absent.keys() == expected.keys()
    for title, words in expected.items():
        assert words in absent[title]


def test_a_damaged_record_is_refused(run: Path) -> None:
    path = run / "stages" / "tokens.json"
    write_json(path, {**read_json(path), "ended": "yesterday"})
    with pytest.raises(MedarError, match=r"tokens\.json: ended: .*'yesterday'"):
        write_report(run)


@pytest.mark.usefixtures("undrawn")
def test_times_are_in_utc(run: Path) -> None:
    path = run / "stages" / "evaluate.json"
    write_json(path, {**read_json(path), "ended": "2026-03-05T01:30:00+02:00"})
    assert (
        make_report(RunFolder(run)).subtitle == "A run of medar, finished 4 March 2026, 23:30 UTC"
    )


@pytest.mark.usefixtures("undrawn")
def test_a_running_stage_has_no_duration(run: Path) -> None:
    path = run / "stages" / "evaluate.json"
    stage = {**read_json(path), "status": "running", "seconds": 0.0, "facts": {"psnr": None}}
    write_json(path, stage)
    text = write_report(run).read_text()
    assert "<td>–</td><td>–</td><td>1</td>" in text
    assert "evaluate 0 s" not in text
    assert '<th scope="row">evaluate: psnr</th><td>–</td>' in text


@pytest.mark.usefixtures("undrawn")
def test_printed_commands_work_from_any_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    text = write_report(Path()).read_text()
    assert f"medar run synthesis {run / 'config.yaml'} " in text
    assert f"medar report {run}\n" in text or f"medar report {run}<" in text


@pytest.mark.usefixtures("undrawn")
def test_a_missing_floor_is_mentioned_once(run: Path) -> None:
    path = run / "evaluation" / "report.json"
    report = read_json(path)
    report["distances"]["radiomics-v2"]["frechet_floor"] = None
    write_json(path, report)
    assert "<span>no floor available</span>" in write_report(run).read_text()


@pytest.mark.usefixtures("undrawn")
def test_the_text_agrees_with_the_numbers(run: Path) -> None:
    path = run / "evaluation" / "report.json"
    report = read_json(path)
    suspect = report["memorisation"]["voxels"]["suspects"][0]
    report["memorisation"]["voxels"]["suspects"] = [{**suspect, "index": k} for k in range(25)]
    write_json(path, {**report, "ms_ssim": 0.25004})
    text = write_report(run).read_text()
    for sentence in (
        "1 real volume of the test split, encoded as tokens",
        "Synthetic volumes are as similar to each other as real ones.",
        "closest first for each kind of distance; the first 20 of 25",
    ):
        assert sentence in text, sentence
    assert "nobody" not in text  # suspected copies might show somebody


@pytest.mark.usefixtures("undrawn")
def test_pictures_no_longer_shown_are_deleted(run: Path) -> None:
    write_report(run)
    (run / "samples" / "preview.png").unlink()
    (run / "report" / "notes.txt").write_text("kept")
    write_report(run)
    assert not (run / "report" / "scales.png").exists()
    assert (run / "report" / "notes.txt").exists()


def test_folders_without_a_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MedarError, match="no such folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(MedarError, match="no run in it"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_legend_names_only_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def look(figure: Figure, file: object, **_: object) -> None:
        seen.extend(text.get_text() for text in figure.legends[0].get_texts())

    monkeypatch.setattr(Figure, "savefig", look)
    without = Distance("a", 3.0, None, None)
    distance_chart(
        [without, Distance("b", 3.0, (2.0, 4.0), 1.0), Distance("c", 3.0, None, 1.0)], ""
    )
    assert sorted(seen) == ["held-out real (floor)", "synthetic"]
    seen.clear()
    distance_chart([without], "")
    assert seen == ["synthetic"]
