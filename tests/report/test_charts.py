"""Charts of a report."""

import pytest
from matplotlib.figure import Figure

from medar.report.charts import Distance, distance_chart


def test_the_legend_names_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
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
