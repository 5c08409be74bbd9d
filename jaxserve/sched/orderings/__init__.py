"""Orderings by the name that the setting `ordering` gives. A new one is a file in this folder and a line here."""

from collections.abc import Callable

from jaxserve.core.settings import require
from jaxserve.sched.orderings.fair import WeightedFair
from jaxserve.sched.orderings.fcfs import FirstCome
from jaxserve.sched.orderings.ordering import Ordering, OrderingContext
from jaxserve.sched.orderings.priority import PriorityWithAgeing
from jaxserve.sched.orderings.shortest import ShortestPrefill
from jaxserve.sched.orderings.slack import LeastSlack

ORDERINGS: dict[str, Callable[[OrderingContext], Ordering]] = {
    "fcfs": FirstCome,
    "priority": PriorityWithAgeing,
    "fair": WeightedFair,
    "slack": LeastSlack,
    "shortest": ShortestPrefill,
}


def make_ordering(context: OrderingContext) -> Ordering:
    """The ordering that the settings name. Raises ConfigError for an unknown one."""
    name = context.config.ordering
    require(name in ORDERINGS, "ordering", name, "one of " + ", ".join(ORDERINGS))
    return ORDERINGS[name](context)
