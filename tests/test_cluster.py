"""Work on a Dask cluster on loopback: the bytes and the outcomes of one process."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar import cluster, cluster_work
from medar.cli.main import main
from medar.cluster import use_cluster, worker_environment
from medar.cluster_work import group_size
from medar.data import prepare as preparing
from medar.data.check import check
from medar.data.plan import IntensityRule, Plan
from medar.data.prepare import prepare
from medar.data.sources import read_manifest
from medar.errors import MedarError
from medar.parallel import Outcome, run_parallel
from medar.segmentation.files import segment_files
from medar.segmentation.segmenter import Segmenter
from medar.shared import Shared
from medar.synthesis.request import Request
from medar.synthesis.samples import write_samples
from medar.synthesis.synthesizer import Synthesizer
from medar.tokenizer.encoding import encode_data_set
from medar.volume import Volume, write_nifti

from .segmentation.small_segmenters import make_segmenter
from .synthesis.tiny import tiny_model, tiny_tokenizer

pytest.importorskip("distributed")

PLAN = Plan(
    spacing=(1.0, 1.0, 2.0),
    mode="volume",
    size=(16, 16, 8),
    downsampling=(4, 4, 2),
    intensity={"CT": IntensityRule(kind="window", low=-100.0, high=300.0)},
    labels={1: "organ", 4: "lesion"},
)
"""That of `tiny_tokenizer`."""


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    """A cluster of two workers in processes of their own."""
    with cluster._local_cluster(2) as made:
        made.wait_for_workers(2)
        yield made


@pytest.fixture
def address(workers: Any) -> str:
    """The scheduler's, once both workers are there; an earlier test may have killed one."""
    while len(workers.scheduler.workers) < 2:
        time.sleep(0.05)
    return str(workers.scheduler_address)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 24 tiny CT volumes with labels, one of them no volume."""
    root = tmp_path_factory.mktemp("data")
    (root / "imagesTr").mkdir()
    (root / "labelsTr").mkdir()
    (root / "labels.json").write_text('{"1": "organ", "4": "lesion"}')
    generator = np.random.default_rng(0)
    for k in range(24):
        voxels = generator.integers(-100, 300, (16, 16, 8)).astype(np.int16)
        values = generator.choice([0, 1, 4], (16, 16, 8)).astype(np.uint8)
        for folder, array in (("imagesTr", voxels), ("labelsTr", values)):
            write_nifti(root / folder / f"c{k:02d}.nii.gz", Volume.from_array(array, np.eye(4)))
    (root / "imagesTr" / "c07.nii.gz").write_bytes(b"no volume")
    return root


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All files, without the hashes of files, which are kept once these are a few seconds old."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "hashes.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def outcomes(items: list[str]) -> dict[str, Outcome[str, Any]]:
    found = list(run_parallel(eval, items, workers=1))
    assert sorted(one.item for one in found) == sorted(items)
    return {one.item: one for one in found}


def test_outcomes_and_warnings_are_those_of_one_process(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # relative paths are those of the command
    items = ["1 / 0", "open('absent')", "__import__('os').getcwd()", *map(str, range(50))]
    here = outcomes(items)
    with use_cluster(address, out=tmp_path):
        assert outcomes(items) == here
        assert list(run_parallel(eval, [], workers=1)) == []
        warned = "__import__('warnings').simplefilter('always'), __import__('warnings').warn('hm')"
        with pytest.warns(UserWarning, match="hm"):
            outcomes([warned])
        full = "(_ for _ in ()).throw(OSError(28, 'No space left on device', 'some/file'))"
        with pytest.raises(MedarError, match=r"^some/file: No space left on device; free some"):
            outcomes([full, "1"])
    assert list(tmp_path.iterdir()) == []


def test_a_killed_worker_changes_no_byte(
    workers: Any, address: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(data, modality="CT")
    prepare(manifest, PLAN, tmp_path / "here", workers=1)
    lines = (tmp_path / "here" / "failed.jsonl").read_text().splitlines()
    assert len(lines) == 1

    def kill_one(items: Iterable[Any], **_: Any) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number == 2:
                os.kill(workers.workers[0].pid, signal.SIGKILL)
            yield item

    monkeypatch.setattr(preparing, "track", kill_one)
    with use_cluster(address, data, out=tmp_path / "there"):
        done = prepare(manifest, PLAN, tmp_path / "there")
        assert (done.made, len(done.failed)) == (23, 1)
        assert bytes_of(tmp_path / "there") == bytes_of(tmp_path / "here")
        monkeypatch.undo()
        assert prepare(manifest, PLAN, tmp_path / "there").made == 0


def test_an_item_that_kills_its_workers_fails_alone(address: str) -> None:
    die = ["__import__('os')._exit(3)", "__import__('os')._exit(4)"]
    with use_cluster(address):
        found = outcomes(["1", die[0], "2", die[1], "3", "4", "5"])
    assert all("workers that tried it died" in str(found.pop(one).error) for one in die)
    assert all(one.value == int(item) for item, one in found.items())


def test_a_result_may_be_lost_with_its_worker() -> None:
    killed = pytest.importorskip("distributed").KilledWorker("task", None, 0)

    class Future:
        status = "finished"

        def result(self) -> Any:
            self.status = "error"
            raise killed

        def exception(self) -> BaseException:
            return killed

    future: Any = Future()
    assert cluster_work._answer(future) is None
    assert cluster_work._died(future)
    assert cluster_work._answer(future) is None  # now that it is an error


def test_a_slow_worker_gets_fewer_items(address: str) -> None:
    pid = "__import__('os').getpid()"
    with use_cluster(address):
        slow = outcomes([pid])[pid].value
        item = f"(__import__('time').sleep(1.0 * ({pid} == {slow})), {pid})[1]"
        count = Counter(one.value for one in run_parallel(eval, [item] * 24, workers=1))
    assert len(count) == 2
    assert count[slow] < 12


def test_a_killed_scheduler_is_one_line_and_what_is_finished_stays(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    run: Callable[..., Any] = lambda *words: subprocess.Popen(  # noqa: E731
        [sys.executable, "-m", *words], stderr=subprocess.DEVNULL
    )
    scheduler = run(
        "distributed.cli.dask_scheduler", "--scheduler-file", file, "--host", "127.0.0.1",
        "--port", "0", "--no-dashboard",
    )  # fmt: skip
    worker = run(
        "distributed.cli.dask_worker", "--scheduler-file", file, "--nthreads", "1", "--no-nanny",
        "--no-dashboard", "--local-directory", tmp_path,
    )  # fmt: skip
    try:
        while not file.exists():
            time.sleep(0.05)
        finished = []
        with (
            pytest.raises(MedarError, match=r"the scheduler is gone; what is finished is kept: "),
            use_cluster(str(file)),
        ):
            for outcome in run_parallel(eval, ["__import__('time').sleep(0.2)"] * 40, workers=1):
                finished.append(outcome)
                scheduler.kill()
        assert 1 <= len(finished) < 40
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()


def segmented(model: Segmenter, images: Path, out: Path) -> dict[str, str]:
    found = segment_files(model, images, out, modality="CT")
    return {Path(name).name: str(result) for name, result in found}


def test_label_maps_are_equal_and_kept(address: str, data: Path, tmp_path: Path) -> None:
    make_segmenter().save_pretrained(tmp_path / "model")
    model = Segmenter.from_pretrained(tmp_path / "model", "cpu")
    images = tmp_path / "images"
    images.mkdir()
    for name in ("c05", "c06", "c07", "c08"):
        shutil.copy(data / "imagesTr" / f"{name}.nii.gz", images)
    here = segmented(model, images, tmp_path / "here")
    assert "c07.nii.gz: " in here["c07.nii.gz"]
    with use_cluster(address, images, out=tmp_path):
        there = segmented(model, images, tmp_path / "there")
        assert bytes_of(tmp_path / "there") == bytes_of(tmp_path / "here")
        assert {k: v.replace("there", "here") for k, v in there.items()} == here
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "there").iterdir()}
        segmented(model, images, tmp_path / "there")
        assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "there").iterdir()}


def test_a_model_that_was_replaced_meanwhile_is_refused(tmp_path: Path) -> None:
    network = make_segmenter()
    assert pickle.loads(pickle.dumps(Shared(network))).model.digest == network.digest
    network.save_pretrained(tmp_path)
    shared = pickle.dumps(Shared(Segmenter.from_pretrained(tmp_path, "cpu")))
    assert len(shared) < 1000
    network.head.bias.data += 1.0
    network.save_pretrained(tmp_path)
    with pytest.raises(MedarError, match="holds another model than the one that was loaded"):
        pickle.loads(shared)


def test_tokens_and_samples_are_equal(address: str, data: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    prepare(read_manifest(data, modality="CT"), PLAN, tmp_path / "prepared", workers=1)
    tiny_model(tokenizer).save_pretrained(tmp_path / "generator", tokenizer)
    synthesizer = Synthesizer.from_pretrained(tmp_path / "generator", "cpu")
    job = synthesizer.job(Request())

    def make(out: Path) -> None:
        encode_data_set(
            tmp_path / "prepared", out / "tokens", tmp_path / "tokenizer", device="cpu",
            variants=1, maps=True,
        )  # fmt: skip
        write_samples(out / "samples", synthesizer, job, range(5), batch_size=2)

    make(tmp_path / "here")
    with use_cluster(address, data, out=tmp_path):
        make(tmp_path / "there")
        with pytest.raises(MedarError, match="preview"):
            write_samples(tmp_path / "s", synthesizer, job, [1], preview=lambda scale, made: None)
    assert len(bytes_of(tmp_path / "there" / "samples")) == 15
    assert bytes_of(tmp_path / "there") == bytes_of(tmp_path / "here")


def printed_alike(command: list[str], address: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints, which must be the same on one machine and on a cluster."""
    printed = []
    for options in ([], ["--cluster", address]):
        with pytest.raises(SystemExit) as left:
            main([*command, *options])
        assert not left.value.code, capsys.readouterr().err
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    return printed[0]


def test_reports_are_equal(
    address: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_segmenter(PLAN).save_pretrained(tmp_path / "model")
    (data / "imagesTr" / "c07.nii.gz").unlink(missing_ok=True)
    (data / "labelsTr" / "c07.nii.gz").unlink(missing_ok=True)
    command = ["evaluate", "segmentation", str(tmp_path / "model"), str(data), "--json"]
    command += ["--device", "cpu", "--modality", "CT"]
    assert '"dice_mean"' in printed_alike(command, address, capsys)
    with use_cluster(address, data):
        there = check(read_manifest(data), deep=True)
    assert there.to_dict() == check(read_manifest(data), deep=True, workers=1).to_dict()


def test_evaluations_of_generated_volumes_are_equal(
    address: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(data, modality="CT")
    prepare(manifest, PLAN, tmp_path / "prepared", workers=1)
    (tmp_path / "made").mkdir()
    generator = np.random.default_rng(1)
    for k in range(7):
        voxels = generator.integers(-100, 300, PLAN.size).astype(np.int16)
        affine = np.diag([*PLAN.spacing, 1.0])
        write_nifti(tmp_path / "made" / f"m{k}.nii.gz", Volume.from_array(voxels, affine))
        values = generator.choice([0, 1, 4], PLAN.size).astype(np.uint8)
        write_nifti(tmp_path / "made" / f"m{k}_label.nii.gz", Volume.from_array(values, affine))
    command = ["evaluate", "generation", str(tmp_path / "made"), str(tmp_path / "prepared")]
    command += ["--json", "--split", "held-out", "--batch", "2", "--device", "cpu"]
    assert '"shape-v2"' in printed_alike(command, address, capsys)
    unknown = Volume.from_array(values + 5, affine)
    write_nifti(tmp_path / "made" / "m3_label.nii.gz", unknown)
    with pytest.raises(SystemExit) as left:
        main([*command, "--cluster", address])
    assert left.value.code == 2
    assert "m3_label.nii.gz: label values" in capsys.readouterr().err


def test_what_does_not_fit_is_one_line(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(where: str, *shared: Path, expected: str) -> None:
        with pytest.raises(MedarError, match=expected) as raised, use_cluster(where, *shared):
            pass
        assert "\n" not in str(raised.value)

    refused(address, tmp_path / "absent", expected=r"does not see .*absent; data and OUT must be")
    monkeypatch.setattr(cluster, "__version__", "9.9")
    refused(address, expected=r"has medar 0\..*, this is medar 9.9; install the same version")
    monkeypatch.setattr(cluster, "CONNECT", 0.5)
    refused("tcp://127.0.0.1:9", expected=r"no scheduler can be reached \(.*\); start one with")
    for wrong in ("local:0", "local:x", "cluster", "http://cluster:80", "absent.json"):
        refused(wrong, expected=rf"--cluster {wrong}: must be the address of a Dask scheduler")
    monkeypatch.setitem(sys.modules, "distributed", None)
    refused(address, expected=r"needs Dask; install it with pip install 'medar\[cluster\]'")


def test_workers_of_one_machine_share_its_processors_and_cards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "default_workers", lambda: 7)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    made = [worker_environment(index, 3) for index in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in made] == ["2", "5", "2"]
    assert {one["OMP_NUM_THREADS"] for one in made} == {"2"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(0, 1)


@pytest.mark.parametrize(
    ("left", "seconds", "expected"),
    [(1000, float("inf"), 1), (1000, 10.0, 1), (1000, 0.01, 50), (1000, 0.0, 125), (9, 0.0, 1)],
)
def test_small_items_are_sent_together(left: int, seconds: float, expected: int) -> None:
    assert group_size(left, 4, seconds) == expected
