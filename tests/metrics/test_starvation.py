"""Who was starved, from steps as the scheduler shows them; and counts by second."""

from typing import Any

from jaxserve.core.plan import NO_BUCKET, StepPlan
from jaxserve.core.step_record import Occupancy, ScheduledStep
from jaxserve.metrics.by_second import SECONDS, BySecond
from jaxserve.metrics.starvation import ServiceBySecond

WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.0}


def run(
    service: ServiceBySecond, seconds: range, served: dict[str, int], waiting: tuple[str, ...], steps: int = 10
) -> None:
    """`served`: output tokens a step by tenant."""
    for second in seconds:
        for i in range(steps):
            now = second + (i + 0.5) / steps
            plan = StepPlan(1, (), (), NO_BUCKET, (), (), ())
            service.add_step(ScheduledStep(plan, (), (), (), now, Occupancy(4, dict.fromkeys(waiting, 1))), now)
            for tenant, count in served.items():
                service.add_tokens(tenant, count, now)


def starved(service: ServiceBySecond, begin_s: float = 0.0) -> dict[str, Any]:
    return service.starved(WEIGHTS, 1.0, 2.0, begin_s)


def test_waiting_beside_others_that_are_served_is_starvation() -> None:
    service = ServiceBySecond()
    run(service, range(10), {"a": 4, "b": 4}, ("a", "b"))
    assert starved(service) == {}
    run(service, range(10, 17), {"a": 8}, ("a", "b"))
    found = starved(service)["b"]
    assert 7 <= found.seconds <= 10 and found.most == "a" and found.ended_s == 16 and found.due == 0.5
    run(service, range(17, 30), {"a": 4, "b": 4}, ("a", "b"))
    assert starved(service)["b"].ended_s < 21, "it is over"
    assert starved(service, begin_s=22.0) == {}


def test_weights_say_what_is_due() -> None:
    service = ServiceBySecond()
    run(service, range(10), {"a": 10, "c": 10}, ("a", "c"))
    assert starved(service) == {}, "c gets half and is due two thirds: more than half of that"
    service = ServiceBySecond()
    run(service, range(10), {"a": 8, "c": 3}, ("a", "c"))
    found = starved(service)["c"]
    assert found.due == 2 / 3 and found.got == 3 / 11 and found.seconds == 10


def test_a_tenant_that_waits_now_and_then_or_alone_is_not_starved() -> None:
    service = ServiceBySecond()
    for second in range(0, 20, 2):
        run(service, range(second, second + 1), {"a": 8}, ("a", "b"))
        run(service, range(second + 1, second + 2), {"a": 8}, ("a",))
    assert starved(service) == {}
    alone = ServiceBySecond()
    run(alone, range(20), {"a": 1}, ("a",))
    assert starved(alone) == {}


def test_few_steps_and_short_times_are_not_judged() -> None:
    service = ServiceBySecond()
    run(service, range(4), {"a": 8}, ("b",), steps=100)
    assert starved(service) == {}
    service = ServiceBySecond()
    run(service, range(9), {"a": 8}, ("b",), steps=2)
    assert starved(service) == {}
    run(service, range(9, 12), {"a": 8}, ("b",), steps=2)
    assert starved(service)["b"].seconds == 12


def test_no_span_goes_across_a_pause() -> None:
    service = ServiceBySecond()
    run(service, range(3), {"a": 8}, ("b",))
    run(service, range(1000, 1003), {"a": 8}, ("b",))
    assert starved(service) == {}


def test_counts_by_second() -> None:
    counted = BySecond()
    for second in range(2 * SECONDS):
        counted.add(("a", "slo"), second + 0.5)
        counted.add(("b", "slo"), second + 0.9)
    assert counted.since(0.0) == {("a", "slo"): SECONDS, ("b", "slo"): SECONDS}
    assert counted.since(2 * SECONDS - 10.0) == {("a", "slo"): 10, ("b", "slo"): 10}
    assert counted.at(2 * SECONDS - 1) == 2 and counted.at(1) == 0
    assert counted.since(2 * SECONDS) == {}
