"""`medar status`: the state of each stage of a run, with times."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from fakes import FakeRecipe
from test_synthesis import TINY, TOKENIZER, TRAINING

from medar.cli.main import main
from medar.errors import MedarError
from medar.files import exclusive, in_use
from medar.recipes.status import RunStatus, run_status
from medar.records import Records, RunRecord, StageRecord, now

STAGES = ("prepare", "tokenizer", "tokens", "generator", "synthesize", "evaluate", "report")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run whose tokenizer was being trained, for 6 of 10 minutes."""
    timed = {**TRAINING, "steps": None, "minutes": 10}
    settings = {**TINY, "detail": None, "tokenizer": {**TOKENIZER, "training": timed}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "stages").mkdir()
    records = Records(tmp_path)
    records.write_run(RunRecord(recipe="synthesis", stages=STAGES, status="running"))
    records.write(StageRecord(name="prepare", status="done", seconds=90.0, outputs=["prepared"]))
    started = now() - timedelta(minutes=7)
    records.write(StageRecord(name="tokenizer", started=started, attempts=1, outputs=["tokenizer"]))
    (tmp_path / "tokenizer").mkdir()
    lines = [{"step": 10, "seconds": 300.0}, {"step": 12, "seconds": 360.0}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "tokenizer" / "metrics.jsonl").write_text(text + '{"step": 1')
    return tmp_path


def states(status: RunStatus) -> list[str]:
    return [stage.state for stage in status.stages]


def test_a_run_in_progress(out: Path) -> None:
    with exclusive(out):
        status = run_status(out)
    assert states(status) == ["done", "running", *["left"] * 5]
    assert (status.working, status.done) == (True, 1)
    tokenizer = status.stages[1]
    assert tokenizer.left == pytest.approx(240)  # 10 minutes without the 6
    assert tokenizer.seconds == pytest.approx(420, abs=5)
    assert tokenizer.about == "step 12"
    assert status.left is None  # four steps of the generator at an unknown rate


def test_a_run_that_was_killed_says_how_to_continue(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Records(out).write(StageRecord(name="tokenizer", status="failed", facts={"error": "no room"}))
    main_exits(["status", str(out)])
    printed = capsys.readouterr().out
    assert "no room" in printed
    assert "1 of 7 stages are done; an unknown time left\ncontinue with: medar run" in printed
    assert printed.endswith(f"medar run synthesis {out}/config.yaml --out {out}\n")
    Records(out).write(StageRecord(name="tokenizer"))
    assert states(run_status(out))[1] == "interrupted"


def test_json_of_a_finished_run(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in STAGES:
        Records(out).write(StageRecord(name=name, status="done", seconds=2.0, outputs=[name]))
    main_exits(["status", str(out), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert (answer["working"], answer["left"]) == (False, 0)
    assert [stage["state"] for stage in answer["stages"]] == ["done"] * 7
    assert answer["verdict"] is None  # there is no evaluation to read


def test_settings_that_cannot_be_read_leave_times_unknown(out: Path) -> None:
    (out / "config.yaml").write_text("nonsense: 1\n")
    assert [stage.left for stage in run_status(out).stages] == [None] * 7
    assert states(run_status(out))[0] == "done"


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MedarError, match="not the folder of a run; name the --out of `medar run`"):
        run_status(tmp_path)


def test_a_lock_that_a_killed_process_left_is_not_in_use(tmp_path: Path, fake: FakeRecipe) -> None:
    assert not in_use(tmp_path)
    with exclusive(tmp_path):
        assert in_use(tmp_path)
    (tmp_path / ".tmp-lock").touch()
    assert not in_use(tmp_path)
    seen: list[bool] = []
    fake.acts["second"] = lambda: seen.append(run_status(fake.out).working)
    fake.run()
    assert seen == [True]
    assert states(run_status(fake.out)) == ["done"] * 3


def main_exits(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
