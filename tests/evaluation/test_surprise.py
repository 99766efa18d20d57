"""Likelihood of volumes, ranking of cases, maps, `medar score` and `medar data check --model`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from small_volumes import make_generator, make_plan, smooth

from medar.cli.main import main
from medar.data.manifest import Case, Manifest
from medar.data.preparation import prepare_image
from medar.errors import MedarError
from medar.evaluation.surprise import files
from medar.evaluation.surprise.files import score_data_set, surprises
from medar.evaluation.surprise.likelihood import Likelihood, measure, surprise_map
from medar.evaluation.surprise.ranking import FEWEST, rank, usual_losses
from medar.generator.conditions import Condition
from medar.synthesis import Synthesizer
from medar.tokenizer.schedule import ScaleSchedule
from medar.volume import Volume, read_volume, write_nifti

COUNT = 12


@pytest.fixture(scope="module")
def model() -> Synthesizer:
    return make_generator(make_plan(), maps=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Volumes of 8 x 8 x 8 in the orientation LPS; the last is noise, the one before is damaged."""
    folder = tmp_path_factory.mktemp("scans")
    cases = []
    noise = np.random.default_rng(0).uniform(-1, 1, (8, 8, 8))
    for number, array in enumerate(smooth(COUNT, 8, 8, 8)):
        path = folder / f"c{number:02}.nii.gz"
        voxels = noise if number == COUNT - 1 else array[0].numpy()
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        nib.save(nib.Nifti1Image((voxels * 1000).astype(np.float32), affine), path)
        if number == COUNT - 2:
            path.write_bytes(path.read_bytes()[:100])
        split: Any = "train" if number < 2 else "test"
        cases.append(Case(id=f"c{number:02}", images=(path,), modality="CT", split=split))
    return Manifest(root=folder, source="folder", cases=tuple(cases))


def case(likelihood: float, residual: float, model: Synthesizer) -> Likelihood:
    _, trace = prepare_image(ct(), model.plan)
    losses = np.full(9, likelihood, np.float32)
    return Likelihood(losses=losses, residual=residual, trace=trace)


def ct() -> Volume:
    return Volume.from_array(smooth(1, 8, 8, 8)[0, 0].numpy() * 1000, np.eye(4), modality="CT")


def test_losses_are_those_of_the_tokens_given_coarser_ones(model: Synthesizer) -> None:
    one = measure(model, ct(), Case(id="a", images=(Path("a"),), modality="CT"))
    array, _ = prepare_image(ct(), model.plan)
    tokens = model.tokenizer.encode(torch.from_numpy(array.copy())[None]).indices
    state = model.model.start(Condition(attributes=torch.zeros(1, 1)))
    expected = []
    with torch.no_grad():
        for part in tokens:
            logits = model.model.next_logits(state)
            expected += (-logits.log_softmax(-1)[0, range(part.numel()), part[0]]).tolist()
            model.model.append(state, part)
    np.testing.assert_allclose(one.losses, expected, rtol=1e-4, atol=1e-4)
    decoded = model.tokenizer.decode(model.tokenizer.encode(torch.from_numpy(array.copy())[None]))
    difference = torch.from_numpy(array.copy()) - decoded.volume[0].detach().clamp(-1, 1)
    assert one.residual == pytest.approx(float(difference.abs().mean()), rel=1e-5)


def test_attributes_that_the_generator_has_not_learnt_are_unknown(model: Synthesizer) -> None:
    def losses(modality: str | None) -> Any:
        return measure(model, ct(), Case(id="a", images=(Path("a"),), modality=modality)).losses

    assert not np.allclose(losses("CT"), losses("MR"))
    np.testing.assert_array_equal(losses("PET"), losses(None))


def test_likelihoods_that_are_not_finite_are_refused() -> None:
    broken = make_generator(make_plan())
    with torch.no_grad():
        broken.model.head.bias[0] = torch.nan
    with pytest.raises(MedarError, match="the losses of the tokens"):
        measure(broken, ct(), Case(id="a", images=(Path("a"),)))


def test_a_case_far_from_the_others_comes_first(model: Synthesizer) -> None:
    generator = np.random.default_rng(0)
    usual = {
        f"u{k}": case(5 + generator.normal(), 0.1 * np.exp(generator.normal(0, 0.1)), model)
        for k in range(20)
    }
    cases = {**usual, "odd": case(15, 0.1, model), "smooth": case(5, 0.01, model)}
    first, second, *rest = rank(cases)
    assert {first.case, second.case} == {"odd", "smooth"}
    assert first.surprising
    assert second.surprising
    assert not any(one.surprising for one in rest)
    reasons = {one.case: one.reason for one in (first, second)}
    assert reasons["odd"] == "unlikely anatomy or contrast"
    assert reasons["smooth"] == "less texture or noise than usual"
    shuffled = dict(reversed(cases.items()))
    assert [one.to_dict() for one in rank(shuffled)] == [one.to_dict() for one in rank(cases)]


def test_a_likelier_case_is_not_surprising(model: Synthesizer) -> None:
    usual = [case(5 + 0.1 * k, 0.1, model) for k in range(10)]
    (one,) = rank({"likely": case(1, 0.1, model)}, usual)
    assert one.score == pytest.approx(0, abs=1e-6)
    assert one.nats_deviation < -4


def test_too_few_cases_are_refused(model: Synthesizer) -> None:
    few = {f"u{k}": case(5, 0.1, model) for k in range(FEWEST - 1)}
    with pytest.raises(MedarError, match="has 7 readable cases; surprise is measured against at"):
        rank(few)
    with pytest.raises(MedarError, match="the reference has 1 readable cases"):
        rank(few, [case(5, 0.1, model)])


def test_usual_losses_are_medians_by_token(model: Synthesizer) -> None:
    cases = [case(k, 0.1, model) for k in (1, 2, 100)]
    np.testing.assert_array_equal(usual_losses(cases), np.full(9, 2.0))


SCHEDULE = ScaleSchedule(grids=((1, 1, 1), (2, 2, 2)))


def test_the_mean_of_a_map_is_the_excess_per_site(model: Synthesizer) -> None:
    _, trace = prepare_image(ct(), model.plan)
    excess = np.zeros(9, np.float32)
    excess[0] = 4.0
    made = surprise_map(excess, SCHEDULE, trace)
    assert made.grid.matches(ct().grid)
    np.testing.assert_allclose(made.array, 0.5, rtol=1e-5)  # 4 nats on 8 sites


def test_a_map_lies_on_the_grid_of_the_file(model: Synthesizer, tmp_path: Path) -> None:
    voxels = smooth(1, 16, 16, 16)[0, 0].numpy() * 1000
    path = tmp_path / "scan.nii.gz"
    affine = np.array([[0, 0, 0.5, 3], [-0.5, 0, 0, 2], [0, 0.5, 0, 1], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), affine), path)
    scan = read_volume(path, modality="CT")
    _, trace = prepare_image(scan, model.plan)
    excess = np.zeros(9, np.float32)
    excess[1 + 0b100] = 1.0  # the site at the patient's right (high x), posterior, inferior
    made = surprise_map(excess, SCHEDULE, trace)
    write_nifti(tmp_path / "map.nii.gz", made, grid="source")
    written = nib.load(tmp_path / "map.nii.gz")
    np.testing.assert_allclose(written.affine, affine)
    assert written.shape == voxels.shape
    most = np.unravel_index(written.get_fdata().argmax(), voxels.shape)
    ras = affine @ [*most, 1]
    middle = affine @ [7.5, 7.5, 7.5, 1]
    assert ras[0] > middle[0]
    assert ras[1] < middle[1]
    assert ras[2] < middle[2]


def test_a_data_set_is_ranked_and_an_interrupted_run_continues(
    model: Synthesizer, data: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = score_data_set(model, data, tmp_path / "out")
    assert scores.ranking[0].case == "c11"
    assert list(scores.failed) == ["c10"]
    assert len(scores.ranking) == COUNT - 1
    for name, path in scores.maps.items():
        source = nib.load(data[name].images[0])
        np.testing.assert_allclose(nib.load(path).affine, source.affine)
    written = json.loads((tmp_path / "out/scores.json").read_text())
    assert [one["case"] for one in written["cases"]] == [one.case for one in scores.ranking]
    monkeypatch.setattr(files, "measure", lambda *_: pytest.fail("measured again"))
    again = score_data_set(model, data, tmp_path / "out")
    assert again.to_dict() == scores.to_dict()


def test_splits_and_references(model: Synthesizer, data: Manifest, tmp_path: Path) -> None:
    held = score_data_set(model, data, tmp_path / "held", split="held-out")
    assert {one.case for one in held.ranking} == {f"c{k:02}" for k in range(2, 12)} - {"c10"}
    one = data.with_cases(data.cases[-1:])
    usual = data.with_cases(data.cases[:-2])
    compared = score_data_set(model, one, tmp_path / "one", reference=usual)
    everything = score_data_set(model, data, tmp_path / "all")
    assert compared.ranking[0].score == pytest.approx(everything.ranking[0].score)
    unsplit = data.with_cases(tuple(replace(case, split=None) for case in data.cases))
    with pytest.raises(MedarError, match="no case is in the split 'held-out'"):
        score_data_set(model, unsplit, tmp_path / "none", split="held-out")


def test_generators_of_patches_are_refused(data: Manifest, tmp_path: Path) -> None:
    patches = make_generator(make_plan(mode="patch"))
    with pytest.raises(MedarError, match="was trained on patches"):
        score_data_set(patches, data, tmp_path / "out")


def test_a_damaged_store_is_measured_again(
    model: Synthesizer, data: Manifest, tmp_path: Path
) -> None:
    scores = score_data_set(model, data, tmp_path / "out")
    stored = sorted((tmp_path / "out/likelihood").glob("*.npy"))
    changed = bytearray(stored[0].read_bytes())
    changed[-2] ^= 0xFF
    stored[0].write_bytes(bytes(changed))
    stored[1].write_bytes(b"")
    stored[2].with_suffix(".json").write_text("{}")
    assert score_data_set(model, data, tmp_path / "out").to_dict() == scores.to_dict()


def test_surprises_are_warnings(model: Synthesizer, data: Manifest) -> None:
    found = surprises(model, data)
    assert ("surprising", "c11") in [(one.code, one.case) for one in found]
    assert all(one.severity == "warning" for one in found)


def test_command_line(
    model: Synthesizer,
    data: Manifest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("medar.report.surprise.SHOWN", 1)
    model.model.save_pretrained(tmp_path / "model", model.tokenizer)

    def medar(*words: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        return int(left.value.code or 0), capsys.readouterr().out

    call = [tmp_path / "model", data.root, "--out", tmp_path / "out", "--modality", "CT"]
    code, text = medar("score", *call)
    assert code == 1  # c10 is damaged
    assert "c11" in text
    assert "c10: not scored:" in text
    page = (tmp_path / "out/report.html").read_text()
    assert "maps/c11.nii.gz" in page
    assert "c10: not scored" in page
    assert (tmp_path / "out/report/c11.png").exists()
    code, text = medar("score", *call, "--json")
    assert json.loads(text)["cases"][0]["case"] == "c11"
    code, text = medar(
        "data", "check", data.root, "--modality", "CT", "--model", tmp_path / "model", "--json"
    )
    problems = json.loads(text)["problems"]
    assert ("surprising", "c11") in [(one["code"], one["case"]) for one in problems]
