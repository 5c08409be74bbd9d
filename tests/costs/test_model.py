"""Step costs: a formula by hand, a fit that finds what made the data, files that come back as they were."""

import random
import statistics
from pathlib import Path

import pytest

from jaxserve.core.errors import ConfigError
from jaxserve.core.plan import Bucket
from jaxserve.costs.file import load_cost, save_cost
from jaxserve.costs.fitted import FittedCost, fit_steps
from jaxserve.costs.model import FormulaCost, StepFeatures

COSTS = Path(__file__).parent.parent.parent / "configs" / "cost"


def features(rng: random.Random) -> StepFeatures:
    decodes = rng.choice([0, rng.randint(1, 64)])
    tokens = rng.choice([0, rng.randint(1, 512)]) if decodes else rng.randint(1, 512)
    rows = min(rng.randint(1, 4), tokens)
    bucket = Bucket(
        next(size for size in (0, 16, 64) if size >= decodes),
        next(size for size in (0, 64, 256, 512) if size >= tokens), 8 if tokens else 0, 64,
    )  # fmt: skip
    return StepFeatures(tokens, tokens * rng.uniform(0, 2000), rows, decodes, decodes * rng.randint(10, 1000), bucket)


def padded(f: StepFeatures) -> float:
    """A machine whose programs cost by their bucket, one of them oddly, and by the context."""
    odd = 0.002 if f.bucket.prefill_tokens == 256 else 0.0
    return 0.001 + odd + 2e-5 * f.bucket.tokens + 2e-9 * f.prefill_pairs + 4e-8 * f.decode_context


def fitted(truth, noise: float = 0.0, steps: int = 1500, **options) -> FittedCost:
    rng, model = random.Random(3), FittedCost(**options)
    for i in range(steps):
        f = features(rng)
        model.observe(f, truth(f) * rng.lognormvariate(0.0, noise) * (20 if noise and i % 50 == 7 else 1))
        if i % 32 == 31:
            model.fit()
    return model


def median_error(model: FittedCost, truth) -> float:
    rng = random.Random(99)
    drawn = [features(rng) for _ in range(400)]
    return statistics.median(abs(model.seconds(f) / truth(f) - 1.0) for f in drawn)


def test_the_formula_by_hand() -> None:
    cost = load_cost(COSTS / "h200_8b_nominal.json")
    f = StepFeatures(512, 512 * 1256.0, 1, 40, 40_000, Bucket(64, 512, 8, 72))
    milliseconds = 1.5 + 0.0295 * 552 + 1.75e-6 * 512 * 1256 + 3.9e-5 * 40_000 + 0.01 * 41
    assert cost.seconds(f) == pytest.approx(milliseconds / 1e3)
    light = f._replace(prefill_tokens=0, prefill_pairs=0.0, prefill_rows=0)
    assert cost.seconds(light) == pytest.approx((1.5 + 4.4 + 3.9e-5 * 40_000 + 0.4) / 1e3)
    assert "nominal" in cost.source


def test_a_fit_finds_what_made_the_data() -> None:
    assert median_error(fitted(padded), padded) < 0.01
    assert median_error(fitted(padded, noise=0.1), padded) < 0.04, "noise, and hiccups of 20 times the cost"


def test_rows_that_go_on_for_the_longest_of_a_block_are_learnt() -> None:
    """As attention on the CPU does; sixteen steps of a hundred are held up by something else on the machine."""

    def looping(f: StepFeatures) -> float:
        return (
            0.001 + 2e-5 * f.bucket.tokens + 4e-7 * f.bucket.decode_rows * f.decode_longest + 8e-6 * f.prefill_longest
        )

    def drawn(rng: random.Random) -> StepFeatures:
        f = features(rng)
        longest = rng.randint(f.decode_context // f.decode_rows, 2000) if f.decode_rows else 0
        return f._replace(decode_longest=longest, prefill_longest=rng.randint(1, 2000) if f.prefill_rows else 0)

    rng = random.Random(1)
    steps = [(f, looping(f)) for f in (drawn(rng) for _ in range(1500))]
    taken = [(f, seconds * (rng.uniform(1.2, 2.5) if i % 6 == 0 else 1.0)) for i, (f, seconds) in enumerate(steps)]
    model = fit_steps(taken)
    longer = [model.seconds(f) / looping(f) for f in (drawn(rng) for _ in range(300))]
    usual = statistics.median(longer)
    assert statistics.median(abs(one / usual - 1.0) for one in longer) < 0.03, "the shape is that of the other steps"
    assert usual == pytest.approx(1.0 + 0.85 / 6, rel=0.03), "the sum is that of all of them"
    assert sum(model.seconds(f) for f, _ in taken) == pytest.approx(sum(seconds for _, seconds in taken), rel=0.01)
    blind = fit_steps([(f._replace(decode_longest=0, prefill_longest=0), seconds) for f, seconds in steps])
    missed = [abs(blind.seconds(f._replace(decode_longest=0, prefill_longest=0)) / s - 1.0) for f, s in steps]
    assert statistics.median(missed) > 0.1, "what the spans are for"


def test_a_scaled_model_goes_on_from_there() -> None:
    model, rng = fitted(padded), random.Random(2)
    model.scale(2.0)
    model.fit()
    assert median_error(model, lambda f: 2.0 * padded(f)) < 0.01, "what it remembers was scaled as well"
    for _ in range(64):
        f = features(rng)
        model.observe(f, 2.0 * padded(f))
    model.fit()
    assert median_error(model, lambda f: 2.0 * padded(f)) < 0.01


def test_the_weights_are_not_negative() -> None:
    assert all(weight >= 0.0 for weight in fitted(padded, noise=0.3).weights.values())


def test_a_bucket_never_seen_costs_what_its_size_says() -> None:
    model = fitted(padded)
    f = StepFeatures(380, 1000.0, 2, 0, 0, Bucket(0, 384, 8, 64))
    assert model.seconds(f) == pytest.approx(padded(f), rel=0.25)


def test_what_has_changed_is_learnt_and_the_past_forgotten() -> None:
    def slower(f: StepFeatures) -> float:
        return 3.0 * padded(f)

    model, rng = fitted(padded, forgetting=0.99), random.Random(5)
    for i in range(1500):
        f = features(rng)
        model.observe(f, slower(f))
        if i % 32 == 31:
            model.fit()
    assert median_error(model, slower) < 0.05, "the old times, remembered, would be off by two thirds"


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    model, rng = fitted(padded), random.Random(1)
    save_cost(tmp_path / "cost.json", model, {"machine": "this one"})
    again = load_cost(tmp_path / "cost.json")
    for _ in range(50):
        f = features(rng)
        assert again.seconds(f) == pytest.approx(model.seconds(f))
    assert isinstance(again, FittedCost) and again.num_observed == model.num_observed


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not JSON .*: `jaxserve calibrate` makes"), ("[]", "no cost model"), ('{"kind": "magic"}', "no cost model"),
     ('{"kind": "formula", "source": "x"}', "damaged"), ('{"kind": "fitted", "source": "x"}', "damaged")],
)  # fmt: skip
def test_a_bad_file_says_what_to_do(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "cost.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_cost(path)


@pytest.mark.parametrize("path", sorted(COSTS.glob("*.json")), ids=lambda path: path.name)
def test_the_shipped_files_load_and_say_where_they_come_from(path: Path) -> None:
    cost = load_cost(path)
    assert isinstance(cost, FormulaCost) and cost.source
