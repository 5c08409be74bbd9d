"""Rates and numbers at once: what is over a limit is refused, says when to come back, and costs nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.core.clock import VirtualClock
from jaxserve.core.errors import InvalidParameter, RequestTooLarge, TooBusy
from jaxserve.core.tenants import Tenant
from jaxserve.engine.engine import Engine
from jaxserve.sched.tenant_limits import TokenBucket
from tests.engine.conftest import request
from tests.sched.test_tenant_ledger import engine_of


def test_rates_are_bounded_and_say_when_to_come_back() -> None:
    clock = VirtualClock(5.0)
    engine = engine_of([Tenant(name="t", requests_per_s=2.0)], clock)
    for name in "ab":
        engine.add(request(name, [1], tenant="t"))
    with pytest.raises(TooBusy, match="2 requests a second") as caught:
        engine.add(request("c", [1], tenant="t"))
    assert caught.value.reason == "rate_limit" and caught.value.retry_after_s == pytest.approx(0.5)
    clock.advance(0.5)
    engine.add(request("c", [1], tenant="t"))


def test_a_refusal_for_another_reason_is_not_charged() -> None:
    """Whatever refuses it, a request that was not queued counts against no rate."""
    clock = VirtualClock(5.0)
    tenant = Tenant(name="t", requests_per_s=2.0, tokens_per_minute=1000, ttft_slo_s=1e-9)
    engine = engine_of([tenant], clock, admission="slo")
    for i in range(10):
        with pytest.raises(TooBusy) as caught:
            engine.add(request(str(i), [1] * 300, tenant="t"))
        assert caught.value.reason == "slo"


def run(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


def refused(engine: Engine, name: str, tokens: int = 10, **params) -> TooBusy:
    with pytest.raises(TooBusy) as caught:
        engine.add(request(name, [1] * tokens, tenant="t", **params))
    return caught.value


def test_tokens_a_minute_count_prompts_and_outputs() -> None:
    clock = VirtualClock(5.0)
    engine = engine_of([Tenant(name="t", tokens_per_minute=600)], clock)
    engine.add(request("a", [1] * 200, tenant="t", max_tokens=50))
    engine.add(request("b", [1] * 200, tenant="t", max_tokens=50, n=2))
    error = refused(engine, "c", 60, max_tokens=30)
    assert error.reason == "rate_limit" and "50 of 600 are left (tokens_per_minute of tenant 't')" in str(error)
    assert error.retry_after_s == pytest.approx(4.0) and error.rate is not None
    assert (error.rate.kind, error.rate.limit, error.rate.remaining) == ("tokens", 600, 50)
    assert error.rate.reset_s == pytest.approx(55.0)
    clock.advance(3.9)
    refused(engine, "c", 60, max_tokens=30)
    clock.advance(0.2)
    engine.add(request("c", [1] * 60, tenant="t", max_tokens=30))
    engine.add(request("d", [1] * 600, tenant="other", max_tokens=50))


def test_what_was_not_used_is_given_back_at_the_end() -> None:
    clock = VirtualClock(5.0)
    engine = engine_of([Tenant(name="t", tokens_per_minute=600)], clock, max_num_seqs=1)
    engine.add(request("a", [1] * 10, tenant="t", max_tokens=500))
    engine.add(request("waits", [1] * 30, tenant="t", max_tokens=50))
    for _ in range(10):
        engine.step()
    refused(engine, "b", 100, max_tokens=100)
    engine.abort("a")
    engine.abort("waits")
    run(engine)
    engine.add(request("b", [1] * 100, tenant="t", max_tokens=400))


def test_without_max_tokens_the_usual_output_is_charged_and_corrected() -> None:
    clock = VirtualClock(5.0)
    engine = engine_of([Tenant(name="t", tokens_per_minute=3200)], clock)
    for i in range(16):  # nothing is known: a sixteenth of the minute's tokens at most
        (sequence,) = engine.add(request(str(i), [1] * 4, tenant="t", max_tokens=None))
        assert sequence.booked_tokens == 204
        if i == 14:
            break
    refused(engine, "over", 4, max_tokens=None)
    for i in range(15):
        engine.abort(str(i))
    run(engine)
    for i in range(20):
        engine.add(request(f"short{i}", [1] * 4, tenant="t", max_tokens=5))
    run(engine)
    (sequence,) = engine.add(request("usual", [1] * 4, tenant="t", max_tokens=None))
    assert sequence.booked_tokens == 9


def test_a_request_over_the_minutes_tokens_is_refused_for_good() -> None:
    engine = engine_of([Tenant(name="t", tokens_per_minute=100)])
    with pytest.raises(RequestTooLarge, match="tokens_per_minute of tenant 't'"):
        engine.add(request("a", [1] * 60, tenant="t", max_tokens=60))
    engine.add(request("b", [1] * 60, tenant="t", max_tokens=40))


def test_concurrent_requests_are_bounded_running_ones_too() -> None:
    engine = engine_of([Tenant(name="t", max_concurrent=3)])
    engine.add(request("a", [1], tenant="t", max_tokens=30))
    engine.add(request("b", [1], tenant="t", max_tokens=3, n=2))
    engine.step()
    error = refused(engine, "c")
    assert error.reason == "tenant_limit" and "max_concurrent of tenant 't'" in str(error)
    with pytest.raises(InvalidParameter, match="max_concurrent of tenant 't'"):
        engine.add(request("d", [1], tenant="t", n=4))
    for _ in range(6):
        engine.step()
    engine.add(request("c", [1], tenant="t", n=2))
    engine.add(request("e", [1], tenant="other"))


@given(st.floats(1.0, 50.0), st.floats(0.1, 50.0), st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 60.0))))
def test_a_bucket_never_gives_more_than_flows_in(most: float, per_s: float, asked: list[tuple[float, float]]) -> None:
    bucket, now, taken = TokenBucket(most, per_s), 100.0, 0.0
    for after_s, amount in asked:
        now += after_s
        if amount <= most and not bucket.wait_s(now, amount):
            bucket.take(now, amount)
            taken += amount
        assert taken <= most + (now - 100.0) * per_s + 1e-6
        assert bucket.state("tokens", now).remaining <= most
        if amount <= most and (wait_s := bucket.wait_s(now, amount)):
            assert bucket.wait_s(now + wait_s * (1 + 1e-9) + 1e-9, amount) < 1e-6
            now += wait_s * (1 + 1e-9) + 1e-9
