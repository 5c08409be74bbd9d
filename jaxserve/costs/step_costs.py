"""The cost model at work: predicts steps, times the ones that run, and learns from them.

A step runs from when it was planned, or from the end of the one before if that was still running, to its commit.
"""

from collections import deque

from jaxserve.core.plan import StepPlan
from jaxserve.costs.fitted import FittedCost
from jaxserve.costs.model import CostModel, StepFeatures

REFIT_STEPS = 32
"""Steps between two refits: one takes well under a millisecond."""
WINDOW = 512
"""Residuals that are remembered."""


class StepCosts:
    """`learns`: refit the model with every step it predicted; a written formula stays as it is."""

    def __init__(self, model: CostModel | None = None, learns: bool = True) -> None:
        self.model: CostModel = model if model is not None else FittedCost()
        self._fitted = self.model if learns and isinstance(self.model, FittedCost) else None
        self._in_flight: deque[tuple[StepFeatures, float, float]] = deque()  # features, planned at, predicted seconds
        self._committed_s = float("-inf")
        self._ratios: deque[float] = deque(maxlen=WINDOW)  # measured over predicted
        self._margin: float | None = None
        self.busy_s = 0.0
        """Summed time of the steps so far."""
        self.last_s = 0.0
        """How long the last step took, and below, what had been predicted; 0: nothing."""
        self.last_predicted_s = 0.0

    @property
    def ready(self) -> bool:
        """Whether the model has learnt enough to predict."""
        return not isinstance(self.model, FittedCost) or self.model.num_observed >= 2 * REFIT_STEPS

    def seconds(self, features: StepFeatures) -> float:
        return self.model.seconds(features)

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
        began = max(self._in_flight[0][1], self._committed_s)
        return max(sum(predicted for _, _, predicted in self._in_flight) - (now - began), 0.0)

    def planned(self, plan: StepPlan, now: float) -> None:
        features = StepFeatures.of(plan)
        self._in_flight.append((features, now, self.model.seconds(features) if self.ready else 0.0))

    def committed(self, now: float) -> None:
        """The oldest planned step is back."""
        features, planned_s, predicted = self._in_flight.popleft()
        seconds = now - max(planned_s, self._committed_s)
        self._committed_s = now
        self.last_predicted_s = predicted
        if seconds <= 0.0:
            return
        self.busy_s += seconds
        self.last_s = seconds
        if predicted > 0.0:
            self._ratios.append(seconds / predicted)
        if self._fitted is not None:
            self._fitted.observe(features, seconds)
        if len(self._ratios) % REFIT_STEPS == 0 or not self.ready:
            self._margin = None
        if self._fitted is not None and self._fitted.num_observed % REFIT_STEPS == 0:
            self._fitted.fit()
            self._margin = None

    def lost(self) -> None:
        """A step failed: no step in flight will be committed."""
        self._in_flight.clear()
