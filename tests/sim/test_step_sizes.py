"""The histogram that bucket sizes are fitted to: of the steps that the settings would take, tenants included."""

from pathlib import Path

from jaxserve.core.config import EngineConfig
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.costs.model import FormulaCost
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.step_sizes import step_sizes

COST = FormulaCost(source="made up", overhead_s=1.0, weights_s=0.0, token_s=0.0, pair_s=0.0, context_s=0.0, row_s=0.0)
CONFIG = EngineConfig.from_settings(
    num_blocks=100, block_size=8, max_num_seqs=4, max_num_batched_tokens=64, enable_prefix_caching=False, overlap=False
)
ARRIVALS = [Arrival(0.0, 20, 3) for _ in range(4)]


def test_steps_are_counted_by_what_is_in_them() -> None:
    """All four prompts want to go at once, and 64 tokens hold three and a bit."""
    sizes = step_sizes(CONFIG, ARRIVALS, COST)
    assert sizes.steps == {(0, 64): 1, (3, 16): 1, (4, 0): 1, (1, 0): 1} and sizes.seconds == 4.0


def test_tenants_that_the_settings_name_are_heeded(tmp_path: Path) -> None:
    """Three blocks at a time: one of them."""
    path = tmp_path / "tenants.toml"
    path.write_text("[tenants.default]\nkv_max = 0.03\n")
    named = step_sizes(CONFIG.replace(tenants=str(path)), ARRIVALS, COST)
    assert named.steps == {(0, 20): 4, (1, 0): 8}
    given = step_sizes(CONFIG, ARRIVALS, COST, tenants=Tenants([Tenant(name="default", kv_max=0.03)]))
    assert given.steps == named.steps
