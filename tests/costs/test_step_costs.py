"""Predictions follow the speed of the machine within a few steps, whatever the model has learnt."""

import random

import pytest

from jaxserve.core.buckets import BucketTable
from jaxserve.core.plan import NOTHING, Row, StepPlan
from jaxserve.core.sections import BucketConfig, SchedulerConfig
from jaxserve.costs.model import CostModel, FormulaCost, StepFeatures
from jaxserve.costs.step_costs import PACE_S, PACE_STEPS, StepCosts

TRUTH = FormulaCost(
    source="made up", overhead_s=0.002, weights_s=0.0, token_s=1e-4, pair_s=0.0, context_s=0.0, row_s=0.0
)
TABLE = BucketTable.from_config(
    BucketConfig(prefill_buckets=(32, 64, 128)), SchedulerConfig(max_num_batched_tokens=128)
)


class Machine:
    """Runs one step after the other and takes `factor` times what `TRUTH` says."""

    def __init__(self, model: CostModel | None) -> None:
        self.costs, self.now, self.factor = StepCosts(model), 0.0, 1.0
        self._rng, self._step = random.Random(5), 0

    def plan(self) -> StepPlan:
        self._step += 1
        tokens = self._rng.randint(1, 128)
        row = Row(0, 0, tokens, NOTHING, (1,) * tokens, ())
        return StepPlan(self._step, (), (row,), TABLE.fit(0, tokens), (), ())

    def run(self, steps: int) -> None:
        for _ in range(steps):
            plan = self.plan()
            self.costs.planned(plan, self.now)
            self.now += self.factor * TRUTH.seconds(StepFeatures.of(plan))
            self.costs.committed(self.now)

    @property
    def ratio(self) -> float:
        """Predicted over true time of a step."""
        features = StepFeatures.of(self.plan())
        return self.costs.seconds(features) / (self.factor * TRUTH.seconds(features))


@pytest.mark.parametrize("model", [None, TRUTH], ids=["learnt", "written down"])
@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_a_jump_of_the_speed_is_followed_within_a_few_steps(model: CostModel | None, factor: float) -> None:
    machine = Machine(model)
    machine.run(400)
    assert machine.costs.pace == 1.0 and machine.ratio == pytest.approx(1.0, abs=0.1)
    machine.factor = factor
    machine.run(PACE_STEPS)
    assert machine.ratio == pytest.approx(1.0, abs=0.2)
    machine.run(300)
    assert machine.ratio == pytest.approx(1.0, abs=0.2), "while a model that learns takes the slow steps in"
    machine.factor = 1.0
    machine.run(PACE_STEPS)
    assert machine.ratio == pytest.approx(1.0, abs=0.3), "and back"


def test_a_hiccup_is_no_change_of_speed() -> None:
    machine = Machine(TRUTH)
    machine.run(50)
    for factor in (20.0, 1.0, 1.0, 20.0, 20.0, 1.0):
        machine.factor = factor
        machine.run(1)
        assert machine.costs.pace == 1.0


def test_an_error_of_the_model_is_no_change_of_speed() -> None:
    machine = Machine(TRUTH)
    machine.factor = 1.2
    machine.run(50)
    assert machine.costs.pace == 1.0


def test_the_margin_is_not_widened_by_a_change_of_speed() -> None:
    machine = Machine(TRUTH)
    machine.run(300)
    machine.factor = 4.0
    machine.run(300)
    assert machine.costs.margin < 1.01, "the four steps before the pace followed are less than one of twenty"


def test_what_the_model_said_is_told_apart_from_the_pace() -> None:
    """Reports of slow steps compare with what was learnt, not with what became usual on a slow machine."""
    machine = Machine(TRUTH)
    machine.factor = 4.0
    machine.run(50)
    assert machine.costs.last_s == pytest.approx(4.0 * machine.costs.last_predicted_s)


def test_a_pace_that_no_step_confirms_is_forgotten() -> None:
    machine = Machine(TRUTH)
    machine.factor = 4.0
    machine.run(50)
    machine.costs.forget_pace(machine.now + 0.5 * PACE_S)
    assert machine.costs.pace == pytest.approx(4.0)
    machine.costs.forget_pace(machine.now + 1.1 * PACE_S)
    assert machine.costs.pace == 1.0
    machine.run(1)
    assert machine.costs.pace == 1.0, "one step is not enough to tell"
