"""Every YAML in configs/ loads, and its header promises something."""

from pathlib import Path

import pytest

from medar.data.plan import Plan

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.name)
def test_config_loads(path: Path) -> None:
    assert path.parent.name == "plans", "say here how a new kind of config is loaded"
    plan = Plan.load(path)
    assert all(n >= 2 for n in plan.latent)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for promise in ("Hardware:", "Time:", "Expect:"):
        assert any(promise in line for line in header), f"{path.name}: no {promise}"
