"""Labels unlike those of the other cases."""

from pathlib import Path

import numpy as np
import pytest

from medar.data.label_outliers import LabelFacts, label_outliers, measure_labels
from medar.volume import Grid

GRID = Grid(shape=(20, 16, 12), affine=np.diag([2.0, 2.0, 5.0, 1.0]))


def facts(ml: float = 20, parts: int = 1, largest: float = 1.0, **at: float) -> LabelFacts:
    centre = (at.get("x", 0.5), at.get("y", 0.5), at.get("z", 0.5))
    return LabelFacts(ml=ml, parts=parts, largest=largest, centre=centre)


def outliers(*cases: LabelFacts) -> dict[str, str]:
    measured = {f"c{n}": {2: one} for n, one in enumerate(cases)}
    return {one.case: one.message for one in label_outliers(measured, {2: "cord"}, None)}


def test_labels_are_measured() -> None:
    array = np.zeros(GRID.shape, np.uint8)
    array[2:4, 0:2, 0:3] = 5
    array[10, 10, 10] = 5
    array[4, 2, 3] = 7  # touches the first by a corner, but is another label
    array[5, 3, 4] = 7
    found = measure_labels(array, GRID)
    assert set(found) == {5, 7}
    assert found[5].ml == pytest.approx(13 * 0.02)
    assert (found[5].parts, found[5].largest) == (2, pytest.approx(12 / 13))
    assert (found[7].parts, found[7].largest) == (1, 1.0)
    assert found[7].centre == pytest.approx((5 / 20, 3 / 16, 4 / 12))
    assert measure_labels(array.astype(np.int16) * -1, GRID)[-7] == found[7]
    assert measure_labels(np.zeros(GRID.shape, np.uint8), GRID) == {}


def test_positions_are_those_of_the_patient() -> None:
    array = np.zeros(GRID.shape, np.uint8)
    array[0, 4, 2] = 1
    lps = Grid(shape=GRID.shape, affine=np.diag([-2.0, -2.0, 5.0, 1.0]))
    turned = Grid(shape=(16, 20, 12), affine=GRID.affine[:, [1, 0, 2, 3]])
    expected = measure_labels(array[::-1, ::-1], lps)[1].centre
    assert measure_labels(array, GRID)[1].centre == pytest.approx(expected)
    assert measure_labels(array.transpose(1, 0, 2), turned)[1].centre == pytest.approx(expected)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (facts(ml=1359), "cord (2): 1359 ml, most others have 9"),
        (facts(ml=0.2), "0.2 ml, most others have 9"),
        (facts(parts=40), "40 connected parts, most others have 1 to 1"),
        (facts(largest=0.4), "40 % of it in its largest part"),
        (facts(x=0.05), "centred at 5 % from left to right, most others have 50"),
        (facts(y=0.9), "from back to front"),
        (facts(z=0.1), "from bottom to top"),
    ],
)
def test_one_case_is_unlike_the_others(odd: LabelFacts, message: str) -> None:
    usual = [facts(ml=ml) for ml in (9, 12, 20, 31, 42, 9.5)]
    found = outliers(*usual, odd)
    assert list(found) == ["c6"]
    assert message in found["c6"]


def test_usual_variation_is_no_outlier() -> None:
    generator = np.random.default_rng(0)
    tumours = [facts(ml=float(v)) for v in np.exp(generator.normal(2, 1.5, 200))]
    assert outliers(*tumours) == {}
    pairs = [facts(largest=0.5 + 0.5 * (n % 5 > 0)) for n in range(50)]
    assert outliers(*pairs) == {}
    assert outliers(*[facts()] * 3, facts(ml=1359)) == {}  # too few to say


def test_a_wrong_label_among_real_ones(shared_data: Path) -> None:
    """test_pt_283 of the head and neck set: a spinal cord of 1,359 ml."""
    from medar.data.check import check
    from medar.data.sources import read_manifest

    manifest = read_manifest(shared_data / "headneck_ct")
    named = [case for case in manifest if case.id == "test_pt_283"]
    some = manifest.with_cases((*manifest.cases[40:52], *named))
    found = [one for one in check(some, deep=True, workers=1).problems if one.case == named[0].id]
    assert any("spinal_cord (2): 1359 ml" in one.message for one in found)
