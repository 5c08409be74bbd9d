"""Step times learnt from recorded steps: non-negative least squares on relative errors, refitted with forgetting.

A step runs a bucket's program, so what it costs is mostly the bucket's; the rest grows with what is in it:

    seconds = offset[bucket] + w . (1, padded rows, padded tokens, prefill pairs, decode context,
                                    decode rows, prefill tokens, prefill rows, decode span, prefill span)

The spans are for programs that take rows in blocks and go on for the longest of a block, as attention does on the CPU:
padded rows x the longest context, and the longest that a chunk sees. Without them a step of sixteen rows, one of them
long, is predicted a third too low, and one of sixteen short rows too high.

The weights w cannot be negative; a bucket's offset can, and is drawn to zero until enough steps of it were seen: a
bucket never seen costs what its size says. Each step counts with 1 / seconds^2, so that errors are relative ones, and
with `forgetting` to the power of its age in steps. Only the normal equations are kept: the memory does not grow.
Solved by coordinate descent (Franc, Hlavac, Navara: "Sequential coordinate-wise algorithm for the non-negative least
squares problem", 2005), from where the last solution ended.
"""

import statistics
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxserve.core.plan import Bucket
from jaxserve.costs.model import StepFeatures

Vector = NDArray[np.float64]
_NAMES = (
    "step", "padded_rows", "padded_tokens", "prefill_pairs", "decode_context", "decode_rows", "prefill_tokens",
    "prefill_rows", "decode_span", "prefill_span",
)  # fmt: skip
_SCALE = np.array([1.0, 64, 512, 512 * 512, 64 * 512, 64, 512, 8, 64 * 512, 2048])
"""Features are divided by these, so that all weights are of one size."""
_USUAL = 0.2
"""Share of such steps up to which they are hiccups; beyond it the machine has become slower."""
_OUTLIER = 3.0
"""A step that took this many times its prediction counts as this many times: the machine did something else."""


_ROUNDS = 8
"""Reweightings of `fit_steps`."""
_EXACT = 0.05
"""Relative errors below this weigh alike."""
HICCUP = 3.0
"""A step of this many times its bucket's median is left out by `fit_steps`, and one of this many times its prediction
counts as this many times in the mean: the machine did something else."""
Sample = tuple[StepFeatures, float]


class FittedCost:
    """`offset_ridge`: how many steps' worth of evidence hold a bucket's offset at zero."""

    def __init__(self, source: str = "measured", forgetting: float = 0.9995, offset_ridge: float = 2.0) -> None:
        self.source = source
        self.num_observed = 0
        self._forgetting, self._ridge = forgetting, offset_ridge
        self._buckets: dict[Bucket, int] = {}
        self._gram = np.zeros((len(_NAMES), len(_NAMES)))
        self._moment = np.zeros(len(_NAMES))
        self._weights = np.zeros(len(_NAMES))
        self._fresh: list[tuple[StepFeatures, float, float]] = []
        self._weight_list: list[float] = self._weights.tolist()
        self._least = 0.0
        self._odd = 0.0

    # --- predicting -------------------------------------------------------------------------------------------

    def seconds(self, features: StepFeatures) -> float:
        w = self._weight_list
        index = self._buckets.get(features.bucket)
        value = sum([a * b for a, b in zip(w, _scaled(features), strict=False)])
        return max(value + (w[index] if index is not None else 0.0), self._least)

    # --- learning ---------------------------------------------------------------------------------------------

    def observe(self, features: StepFeatures, seconds: float, scale: float | None = None) -> None:
        """One more recorded step; it counts from the next `fit` on.

        Its error counts relative to `scale`, by default to what is predicted: relative to its own time, the fastest
        steps of a noisy machine would weigh the most, and every prediction would be too low. A caller that gives a
        scale has removed outliers; otherwise it is done here.
        """
        assert seconds > 0.0
        if scale is None and self.num_observed >= 32:
            most = _OUTLIER * self.seconds(features)
            self._odd += 0.05 * ((seconds > most) - self._odd)
            if self._odd < _USUAL:  # else it is the model that is wrong
                seconds = min(seconds, most)
        self._least = min(self._least, 0.5 * seconds) if self._least else 0.5 * seconds
        self._index(features.bucket)
        if scale is None:
            scale = self.seconds(features) if self.num_observed >= 64 and self._odd < _USUAL else seconds
        self._fresh.append((features, seconds, scale))
        self.num_observed += 1

    def fit(self, sweeps: int = 8) -> None:
        """Bring the weights nearer to the least squares, by `sweeps` rounds over all of them."""
        self._take_in()
        gram = self._gram.copy()
        count = len(_NAMES)
        diagonal = np.einsum("ii->i", gram)
        diagonal[count:] += self._ridge * diagonal[0] / max(self._effective(), 1.0)
        diagonal += 1e-9 * diagonal.max() + 1e-300
        w, gradient = self._weights, gram @ self._weights - self._moment
        for _ in range(sweeps):
            for i in range(len(w)):
                value = w[i] - gradient[i] / gram[i, i]
                value = max(value, 0.0) if i < count else value
                if value != w[i]:
                    gradient += (value - w[i]) * gram[:, i]
                    w[i] = value
        self._weight_list = w.tolist()

    def scale(self, factor: float) -> None:
        """Multiply all predictions by `factor`, as if all observed steps had taken that much longer."""
        self._take_in()
        self._moment *= factor
        self._weights *= factor
        self._weight_list = self._weights.tolist()

    def start_from(self, other: "FittedCost") -> None:
        """Begin the next `fit` at another model's weights, of the same buckets met in the same order."""
        if other._buckets == self._buckets:
            self._weights = other._weights.copy()

    def _take_in(self) -> None:
        """Add what was observed since the last fit to the normal equations."""
        rows = np.zeros((len(self._fresh), len(self._moment)))
        ages = np.arange(len(self._fresh))[::-1]
        targets = np.array([seconds / scale for _, seconds, scale in self._fresh])
        for row, (features, _, scale) in zip(rows, self._fresh, strict=True):
            row[: len(_NAMES)] = _scaled(features)
            row[self._buckets[features.bucket]] = 1.0
            row /= scale
        kept = self._forgetting ** len(self._fresh)
        weighted = rows * (self._forgetting**ages)[:, None]
        self._gram = kept * self._gram + weighted.T @ rows
        self._moment = kept * self._moment + weighted.T @ targets
        self._fresh.clear()

    def _effective(self) -> float:
        """Steps that still count."""
        if self._forgetting == 1.0:
            return self.num_observed
        return (1.0 - self._forgetting**self.num_observed) / (1.0 - self._forgetting)

    def _index(self, bucket: Bucket) -> int:
        index = self._buckets.get(bucket)
        if index is None:
            index = self._buckets[bucket] = len(self._weights)
            self._gram = np.pad(self._gram, ((0, 1), (0, 1)))
            self._moment = np.append(self._moment, 0.0)
            self._weights = np.append(self._weights, 0.0)
            self._weight_list = self._weights.tolist()
        return index

    # --- storing ----------------------------------------------------------------------------------------------

    @property
    def weights(self) -> dict[str, float]:
        """Seconds a unit of each feature costs."""
        return dict(zip(_NAMES, (self._weights[: len(_NAMES)] / _SCALE).tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        self._take_in()
        return {
            "kind": "fitted",
            "source": self.source,
            "num_observed": self.num_observed,
            "forgetting": self._forgetting,
            "offset_ridge": self._ridge,
            "least_s": self._least,
            "weights_s": self.weights,
            "buckets": [[*bucket, float(self._weights[index])] for bucket, index in self._buckets.items()],
            "gram": self._gram.tolist(),
            "moment": self._moment.tolist(),
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "FittedCost":
        model = cls(stored["source"], stored["forgetting"], stored["offset_ridge"])
        model.num_observed, model._least = stored["num_observed"], stored["least_s"]
        for entry in stored["buckets"]:
            index = model._index(Bucket(*map(int, entry[:4])))
            model._weights[index] = entry[4]
        model._weights[: len(_NAMES)] = np.array([stored["weights_s"][name] for name in _NAMES]) * _SCALE
        model._weight_list = model._weights.tolist()
        model._gram, model._moment = np.array(stored["gram"]), np.array(stored["moment"])
        return model


def fit_steps(samples: list[Sample], source: str = "measured") -> FittedCost:
    """A model that has learnt from all of them alike: least sizes of the errors relative to their bucket's median.

    Squares would follow the steps that something else on the machine held up; hiccups are left out, even so. Least
    sizes by squares that are weighed anew, each with 1 / its last error (iteratively reweighted least squares).

    That is the shape of a typical step. What a queue waits for is the sum, and slow steps are slower than fast ones are
    fast, so the whole is then raised to the mean of all of them (by 3-7% on two cores that nothing else used; without
    it, the median TTFT at 0.8 of saturation was predicted 5-16% too short in all of six rounds).
    """
    by_bucket: dict[Bucket, list[float]] = {}
    for features, seconds in samples:
        by_bucket.setdefault(features.bucket, []).append(seconds)
    usual = {bucket: statistics.median(times) for bucket, times in by_bucket.items()}
    kept = [(f, seconds, usual[f.bucket]) for f, seconds in samples if seconds < HICCUP * usual[f.bucket]]
    scales = [middle for _, _, middle in kept]
    model = FittedCost(source, forgetting=1.0)
    for _ in range(_ROUNDS):
        fresh = FittedCost(source, forgetting=1.0)
        for (features, seconds, _), scale in zip(kept, scales, strict=True):
            fresh.observe(features, seconds, scale=scale)
        fresh.start_from(model)
        fresh.fit(sweeps=200)
        model = fresh
        errors = [max(abs(model.seconds(f) - seconds) / middle, _EXACT) for f, seconds, middle in kept]
        mean = statistics.fmean(1.0 / error for error in errors) if errors else 1.0
        scales = [middle * (error * mean) ** 0.5 for (_, _, middle), error in zip(kept, errors, strict=True)]
    predicted = [model.seconds(features) for features, _ in samples]
    taken = [min(seconds, HICCUP * usually) for (_, seconds), usually in zip(samples, predicted, strict=True)]
    model.scale(sum(taken) / sum(predicted) if samples else 1.0)
    return model


def _scaled(f: StepFeatures) -> tuple[float, ...]:
    b = f.bucket
    return (
        1.0,
        b.decode_rows / 64,
        b.prefill_tokens / 512,
        f.prefill_pairs / 262144,
        f.decode_context / 32768,
        f.decode_rows / 64,
        f.prefill_tokens / 512,
        f.prefill_rows / 8,
        b.decode_rows * f.decode_longest / 32768,
        f.prefill_longest / 2048,
    )
