"""Batch policies by the name that the setting `policy` gives. A new one is a file in this folder and a line here."""

from collections.abc import Callable

from jaxserve.core.settings import require
from jaxserve.sched.policies.adaptive import Adaptive
from jaxserve.sched.policies.chunked import Chunked
from jaxserve.sched.policies.continuous import Continuous
from jaxserve.sched.policies.dynamic import Dynamic
from jaxserve.sched.policies.policy import BatchPolicy, PolicyContext
from jaxserve.sched.policies.static import Static

POLICIES: dict[str, Callable[[PolicyContext], BatchPolicy]] = {
    "static": Static,
    "dynamic": Dynamic,
    "continuous": Continuous,
    "chunked": Chunked,
    "adaptive": Adaptive,
}


def make_policy(context: PolicyContext) -> BatchPolicy:
    """The policy that the settings name. Raises ConfigError for an unknown one."""
    name = context.config.policy
    require(name in POLICIES, "policy", name, "one of " + ", ".join(POLICIES))
    return POLICIES[name](context)
