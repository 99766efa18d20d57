"""Models in MLflow: found by name and alias, self-contained, equal to the command line."""

import gzip
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medar.data.reading import read_for_plan
from medar.errors import MedarError
from medar.segmentation.files import segment_files
from medar.segmentation.segmenter import Segmenter
from medar.synthesis.request import Request
from medar.synthesis.samples import write_samples
from medar.synthesis.synthesizer import Synthesizer
from medar.tokenizer.tokenizer import Tokenizer
from medar.tracking import MlflowTracker, models, serving
from medar.tracking.models import log_model
from medar.tracking.names import check_names
from medar.training.tracker import JsonlTracker, Trackers
from medar.volume import Volume, read_volume, write_nifti
from medar.volume.marks import RECONSTRUCTED

Make = Callable[..., MlflowTracker]


def load(uri: str) -> Any:
    import mlflow

    return mlflow.pyfunc.load_model(uri)


def test_a_generator_returns_the_files_that_synthesis_writes(
    make: Make, generator: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(generator, tmp_path / "moved")
    log_model(make(), moved, kind="generator", metrics={}, register="medar-tiny", alias="champion")
    shutil.rmtree(moved)  # what MLflow keeps is enough
    answer = load("models:/medar-tiny@champion").predict(
        [
            {"seed": 3, "n": 2, "class": "liver", "sampling": {"guidance_scale": 1}},
            {"seed": 9, "attributes": {"age": 60.0}},
        ]
    )
    synthesizer = Synthesizer.from_pretrained(generator, "cpu")
    expected = []
    for name, request, seeds in (
        ("a", Request(class_="liver", guidance_scale=1.0), range(3, 5)),
        ("b", Request(attributes={"age": 60}), range(9, 10)),
    ):
        images, _ = write_samples(tmp_path / name, synthesizer, synthesizer.job(request), seeds)
        expected += [(path, path.with_name(path.name[:11] + "_label.nii.gz")) for path in images]
    assert [row["seed"] for _, row in answer.iterrows()] == [3, 4, 9]
    for (image, label), (_, row) in zip(expected, answer.iterrows(), strict=True):
        assert row["image"] == image.read_bytes()
        assert row["label"] == label.read_bytes()
        record = image.with_name(image.name[:11] + ".json")
        assert json.loads(row["about"]) == json.loads(record.read_text())


def test_a_generator_follows_a_map_sent_as_bytes(
    make: Make, generator: Path, tmp_path: Path
) -> None:
    array = np.zeros((16, 16, 8), np.uint8)
    array[4:10, 4:10, 2:6] = 1
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    write_nifti(tmp_path / "mask.nii", Volume.from_array(array, affine))
    model = load(log_model(make(), generator, kind="generator", metrics={}))
    answer = model.predict([{"seed": 1, "mask": (tmp_path / "mask.nii").read_bytes()}])
    mask = read_volume(tmp_path / "mask.nii", labels=True)
    (made,) = Synthesizer.from_pretrained(generator, "cpu")(seed=1, mask=mask)
    (tmp_path / "made.nii.gz").write_bytes(answer["image"][0])
    assert np.array_equal(read_volume(tmp_path / "made.nii.gz").array, made.image.array)


def test_a_generator_fills_a_region_of_a_volume_in_the_request(
    make: Make, generator: Path, tmp_path: Path
) -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    noise = np.random.default_rng(0).normal(100.0, 40.0, (16, 16, 8)).astype(np.float32)
    region = np.zeros((16, 16, 8), np.uint8)
    region[4:12, 4:12, 2:6] = 1
    volume, hole = tmp_path / "volume.nii.gz", tmp_path / "hole.nii.gz"
    write_nifti(volume, Volume.from_array(noise, affine))
    write_nifti(hole, Volume.from_array(region, affine))
    model = load(log_model(make(), generator, kind="generator", metrics={}))
    sent = {"seed": 1, "inpaint": volume.read_bytes(), "region": hole.read_bytes()}
    (image,) = model.predict([sent])["image"]
    synthesizer = Synthesizer.from_pretrained(generator, "cpu")
    request = Request(
        inpaint=read_for_plan(synthesizer.plan, volume), region=read_volume(hole, labels=True)
    )
    images, _ = write_samples(tmp_path / "samples", synthesizer, synthesizer.job(request), [1])
    assert image == images[0].read_bytes()


def test_a_tokenizer_returns_reconstructions(make: Make, tokenizer: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(100.0, 80.0, (18, 15, 9)).astype(np.float32)
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    write_nifti(tmp_path / "a.nii.gz", Volume.from_array(noise, affine))
    model = load(log_model(make(), tokenizer, kind="tokenizer", metrics={}))
    content = (tmp_path / "a.nii.gz").read_bytes()
    answer = model.predict([{"volume": content}, {"volume": content, "upto": 1}])
    own = Tokenizer.from_pretrained(tokenizer, "cpu")
    for upto, (_, row) in zip((None, 1), answer.iterrows(), strict=True):
        made = own.reconstruct(read_for_plan(own.require_plan(), tmp_path / "a.nii.gz"), upto)
        write_nifti(tmp_path / "b.nii.gz", made.image, grid="source", description=RECONSTRUCTED)
        assert row["image"] == (tmp_path / "b.nii.gz").read_bytes()
        assert row["label"] is not None
        assert (row["psnr"], row["outside"]) == (made.psnr, made.outside)


def test_a_segmenter_returns_label_maps(make: Make, segmenter: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(100.0, 80.0, (18, 15, 9)).astype(np.float32)
    image, label = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    write_nifti(image, Volume.from_array(noise, np.diag([-1.0, 1.0, 2.0, 1.0])))
    model = load(log_model(make(), segmenter, kind="segmenter", metrics={}))
    (row,) = model.predict([{"volume": image.read_bytes(), "modality": "CT"}]).to_dict("records")
    list(segment_files(Segmenter.from_pretrained(segmenter, "cpu"), image, label, modality="CT"))
    assert row["label"] == label.read_bytes()
    about = json.loads((tmp_path / "b.json").read_text())
    assert json.loads(row["about"]) == {n: v for n, v in about.items() if n != "image"}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"seed": 1, "class": "x"}, "knows organ: liver, spleen, none"),
        ({"seed": 1, "attributes": {"age": 60}}, "attributes must be an object, got 60"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ([{"seed": 1, "sampling": {"top_q": 3}}], "did you mean 'top_p'"),
        ({"n": 1}, "Model is missing inputs ['seed']"),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"seed": None}, "key 'seed' is missing"),
        ({"seed": 1, "n": 101}, "n must be at most 100 per request, got 101"),
        ([{"seed": 1, "n": np.array([1, 2])}], "n must be an integer, got [1, 2]"),
        ([{"seed": 1, "attributes": np.array([1, 2])}], "attributes must be an object, got [1, 2]"),
        ({"seed": 1, "mask": b"hello"}, "request: mask.nii: not a readable NIfTI file"),
    ],
)
def test_an_invalid_request_is_refused(
    request_: Any, message: str, make: Make, generator: Path
) -> None:
    from mlflow.exceptions import MlflowException

    model = load(log_model(make(), generator, kind="generator", metrics={}))
    with pytest.raises(MlflowException) as error:
        model.predict(request_)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert tempfile.gettempdir() not in str(error.value)


@pytest.mark.parametrize("packed", [False, True])
def test_a_request_of_too_many_voxels_is_refused(packed: bool, segmenter: Path) -> None:
    """By its header alone: a few kilobytes, which state a gigabyte, are not inflated."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((1024, 1024, 1024))
    header.set_sform(np.eye(4), code=1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    content = header.binaryblock + bytes(5000)
    serve = serving.SegmenterEndpoint(Segmenter.from_pretrained(segmenter, "cpu"))
    with pytest.raises(MedarError) as caught:
        serve({"volume": gzip.compress(content) if packed else content})
    assert str(caught.value) == (
        "request: volume must have at most 268435456 voxels, got 1073741824; crop it, or use the "
        "command line"
    )


def test_a_model_belongs_to_its_run_and_is_measured(
    client: Any, make: Make, generator: Path
) -> None:
    tracker = make(system=False)
    tracker.log_parameters({"depth": 2})
    tracker.log_metrics({"loss": 1.0}, 7)
    tracker.close()
    metrics = {"frechet": 57.0, "bad": float("nan")}
    uri = log_model(tracker, generator, kind="generator", metrics=metrics)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    model = client.get_logged_model(uri.removeprefix("models:/"))
    assert (model.status, model.model_type, model.source_run_id) == (
        "READY", "generator", tracker.run_id,
    )  # fmt: skip
    assert [(metric.key, metric.value, metric.step) for metric in model.metrics] == [
        ("frechet", 57.0, 7)
    ]
    assert model.params == {"depth": "2"}
    assert [(output.model_id, output.step) for output in run.outputs.model_outputs] == [
        (model.model_id, 7)
    ]
    assert run.data.metrics["frechet"] == 57.0
    loaded = load(uri).metadata
    assert [tensor.name for tensor in loaded.get_input_schema().inputs][:3] == [
        "seed",
        "n",
        "class",
    ]
    assert loaded.model_id == model.model_id


def test_the_same_folder_is_the_same_model(
    client: Any, make: Make, generator: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(generator, tmp_path / "copy")
    options: dict[str, Any] = {"kind": "generator", "register": "tiny", "alias": "champion"}
    first = log_model(make(), generator, metrics={"frechet": 57.0}, **options)
    again = log_model(make(), folder, metrics={"frechet": 57.0, "kernel": 1.0}, **options)
    assert again == first
    model = client.get_logged_model(first.removeprefix("models:/"))
    assert sorted((metric.key, metric.value) for metric in model.metrics) == [
        ("frechet", 57.0), ("kernel", 1.0),
    ]  # fmt: skip
    assert len(client.search_model_versions("name = 'tiny'")) == 1
    (folder / "README.md").write_text("another card")
    other = log_model(make(), folder, metrics={}, **options)
    assert other != first
    assert len(client.search_logged_models([model.experiment_id])) == 2
    assert client.get_model_version_by_alias("tiny", "champion").source == other


def test_an_interrupted_upload_is_repeated(
    client: Any, make: Make, generator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: Any) -> None:
        raise ConnectionError("gone\naway")

    tracker = make()
    with monkeypatch.context() as patch:
        patch.setattr(models.ModelRegistry, "_upload", cut)
        with pytest.raises(MedarError, match="not logged as a model") as error:
            log_model(tracker, generator, kind="generator", metrics={})
    assert "\n" not in str(error.value)
    uri = log_model(tracker, generator, kind="generator", metrics={})
    experiment = client.get_run(tracker.run_id).info.experiment_id
    assert [f"models:/{model.model_id}" for model in client.search_logged_models([experiment])] == [
        uri
    ]
    assert len(client.get_run(tracker.run_id).outputs.model_outputs) == 1
    assert len(load(uri).predict({"seed": 0})) == 1


def test_logging_a_model_sends_the_missing_records_of_its_run(
    client: Any, make: Make, generator: Path, tmp_path: Path
) -> None:
    killed = make(clock=lambda: 0.0)
    own = JsonlTracker(tmp_path / "run" / "metrics.jsonl")
    both = Trackers([own, killed])
    both.log_parameters({})
    for step in (1, 2):
        both.log_metrics({"loss": 1.0}, step)
    own.close()
    assert client.get_run(killed.run_id).info.status == "RUNNING"
    with make() as tracker:
        log_model(tracker, generator, kind="generator", metrics={})
    assert client.get_run(killed.run_id).info.status == "FINISHED"
    found = client.get_metric_history(killed.run_id, "loss")
    assert [metric.step for metric in found] == [1, 2]


def test_logging_a_model_does_not_end_its_run(client: Any, make: Make, generator: Path) -> None:
    tracker = make()
    tracker.log_parameters({})
    log_model(tracker, generator, kind="generator", metrics={})
    assert client.get_run(tracker.run_id).info.status == "RUNNING"


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("generator", serving.GeneratorRequest),
        ("tokenizer", serving.TokenizerRequest),
        ("segmenter", serving.SegmenterRequest),
    ],
)
def test_the_signature_has_the_fields_of_the_request(kind: Any, sent: type[Any]) -> None:
    names = [field.name.removesuffix("_") for field in fields(sent)]
    assert sorted(name for name, _, _ in serving.COLUMNS[kind][0]) == sorted(names)


def test_the_tracking_uri_of_the_user_is_kept(
    make: Make, generator: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    elsewhere = f"sqlite:///{tmp_path}/elsewhere.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    log_model(make(uri=store), generator, kind="generator", metrics={}, register="tiny")
    assert mlflow.get_tracking_uri() == elsewhere
    assert not (tmp_path / "elsewhere.db").exists()


def test_an_unreachable_server_is_reported_once(
    store: str, tmp_path: Path, generator: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = MlflowTracker(tmp_path / "run", name="test", uri="http://127.0.0.1:9")
    tracker.log_parameters({"depth": 2})
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.close()
    with pytest.raises(
        MedarError, match=r"not logged as a model at http://127\.0\.0\.1:9 \(no run there\)"
    ) as error:
        log_model(tracker, generator, kind="generator", metrics={})
    assert "\n" not in str(error.value)
    printed = capsys.readouterr().err.splitlines()
    assert [line.count("is not reached") for line in printed] == [1, 0]
    assert "1 metric, 1 parameter did not reach MLflow" in printed[1]


def test_a_folder_without_a_model_is_not_logged(make: Make, tmp_path: Path) -> None:
    with pytest.raises(MedarError, match=r"no model \(no config\.json\)"):
        log_model(make(), tmp_path, kind="tokenizer", metrics={})


@pytest.mark.parametrize(
    ("name", "alias", "message"),
    [
        (None, "champion", "name one"),
        ("a/b", None, "register 'a/b'"),
        ("", None, "register ''"),
        ("a", "v1", "alias 'v1'"),
        ("a", "Latest", "alias 'Latest'"),
        ("a", "a b", "alias 'a b'"),
    ],
)
def test_invalid_names_are_refused_before_the_registry_does(
    name: str | None, alias: str | None, message: str
) -> None:
    with pytest.raises(MedarError) as error:
        check_names(name, alias)
    assert message in str(error.value)
