"""The cost model at work: predicts steps, times the ones that run, and learns from them.

A step runs from when it was planned, or from the end of the one before if that was still running, to its commit.

A model learns the shape of the costs from hundreds of steps. The speed of the machine can change within one, when
another process takes its cores or its memory bandwidth. Predictions follow it by the *pace*: the median of measured
over modelled time of the last few steps.

    measured / modelled    1.0  1.1  0.9  1.0  4.1  3.9  4.0  4.2  4.0
    pace                   1    1    1    1    1    1    1    3.9  4.0
"""

from collections import deque
from typing import NamedTuple

from jaxserve.core.plan import StepPlan
from jaxserve.costs.fitted import FittedCost
from jaxserve.costs.model import CostModel, StepFeatures

REFIT_STEPS = 32
"""Steps between two refits: one takes well under a millisecond."""
WINDOW = 512
"""Residuals that are remembered."""
PACE_STEPS = 7
"""Steps whose median ratio is the pace: one hiccup does not move it, and four steps at a new speed do."""
STEADY = 1.25
"""A ratio between 1 / this and this is the model's own error, which the fit reduces: the pace is then 1."""
PACE_S = 2.0
"""Seconds without a step after which the pace is forgotten: nothing tells what it is by then."""


class _InFlight(NamedTuple):
    features: StepFeatures
    planned_s: float
    modelled_s: float
    """What the model says it takes; 0: nothing yet."""
    predicted_s: float
    """The same at the pace of when it was planned."""


class StepCosts:
    """`learns`: refit the model with every step it predicted; a written formula stays as it is."""

    def __init__(self, model: CostModel | None = None, learns: bool = True) -> None:
        self.model: CostModel = model if model is not None else FittedCost()
        self._fitted = self.model if learns and isinstance(self.model, FittedCost) else None
        self._in_flight: deque[_InFlight] = deque()
        self._committed_s = float("-inf")
        self._recent: deque[float] = deque(maxlen=PACE_STEPS)  # measured over modelled
        self.pace = 1.0
        """How many times longer than the model says steps take now."""
        self._ratios: deque[float] = deque(maxlen=WINDOW)  # measured over predicted
        self._margin: float | None = None
        self.busy_s = 0.0
        """Summed time of the steps so far."""
        self.last_s = 0.0
        """How long the last step took, and below, what the model had said, without the pace; 0: nothing."""
        self.last_predicted_s = 0.0

    @property
    def ready(self) -> bool:
        """Whether the model has learnt enough to predict."""
        return not isinstance(self.model, FittedCost) or self.model.num_observed >= 2 * REFIT_STEPS

    def seconds(self, features: StepFeatures) -> float:
        """What a step of these features takes at the present pace."""
        return self.model.seconds(features) * self.pace

    @property
    def margin(self) -> float:
        """19 steps of 20 take at most this many times what was predicted; at least 1."""
        if self._margin is None:
            ordered = sorted(self._ratios)
            self._margin = max(1.0, ordered[int(0.95 * len(ordered))]) if len(ordered) >= 20 else 1.0
        return self._margin

    @property
    def median_error(self) -> float | None:
        """Median of |measured / predicted - 1| over the last steps, each predicted before it ran."""
        errors = sorted(abs(ratio - 1.0) for ratio in self._ratios)
        return errors[len(errors) // 2] if errors else None

    def in_flight_s(self, now: float) -> float:
        """Predicted time until all planned steps have ended."""
        if not self._in_flight:
            return 0.0
        began = max(self._in_flight[0].planned_s, self._committed_s)
        return max(sum(step.predicted_s for step in self._in_flight) - (now - began), 0.0)

    def forget_pace(self, now: float) -> None:
        """Take the pace as 1 if no step has confirmed it for `PACE_S`: to be called before an idle engine predicts."""
        if self._recent and not self._in_flight and now - self._committed_s > PACE_S:
            self._recent.clear()
            self.pace = 1.0

    def planned(self, plan: StepPlan, now: float) -> None:
        self.forget_pace(now)
        features = StepFeatures.of(plan)
        modelled_s = self.model.seconds(features) if self.ready else 0.0
        self._in_flight.append(_InFlight(features, now, modelled_s, modelled_s * self.pace))

    def committed(self, now: float) -> None:
        """The oldest planned step is back."""
        step = self._in_flight.popleft()
        seconds = now - max(step.planned_s, self._committed_s)
        self._committed_s = now
        self.last_predicted_s = step.modelled_s
        if seconds <= 0.0:
            return
        self.busy_s += seconds
        self.last_s = seconds
        if step.modelled_s > 0.0:
            self._ratios.append(seconds / step.predicted_s)
            self._follow(seconds / step.modelled_s)
        if self._fitted is not None:
            self._fitted.observe(step.features, seconds)
        if len(self._ratios) % REFIT_STEPS == 0 or not self.ready:
            self._margin = None
        if self._fitted is not None and self._fitted.num_observed % REFIT_STEPS == 0:
            self._fitted.fit()
            self._margin = None

    def _follow(self, ratio: float) -> None:
        self._recent.append(ratio)
        if len(self._recent) == PACE_STEPS:
            median = sorted(self._recent)[PACE_STEPS // 2]
            self.pace = 1.0 if 1.0 / STEADY < median < STEADY else median

    def lost(self) -> None:
        """A step failed: no step in flight will be committed."""
        self._in_flight.clear()
