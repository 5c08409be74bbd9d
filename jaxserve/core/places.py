"""A bound that several tenants share, so that no tenant can fill it up before another one.

    |------ half of the places: anyone's ------|-- kept for a --|-- kept for b --|

`KEPT` of the places is divided among the tenants by weight. A tenant may always fill its own part; beyond it, whatever
is left when the unused parts of the others stay free. One tenant alone has all places.
"""

from collections.abc import Callable, Mapping

KEPT = 0.5
"""Share of the places that is kept for the tenants, each its part."""


class Places:
    """`weights`: of all tenants that can come, by name."""

    def __init__(self, most: int, weights: Mapping[str, float]) -> None:
        self.most = most
        total = sum(weights.values())
        self._kept = {name: int(KEPT * most * weight / total) for name, weight in weights.items()}
        if len(self._kept) == 1:
            self._kept.clear()

    def most_of(self, tenant: str) -> int:
        """Places that the tenant can have while no other tenant has any."""
        return self.most - sum(kept for name, kept in self._kept.items() if name != tenant)

    def have_room(self, tenant: str, count: int, held: Callable[[str], int], total: int) -> bool:
        """Whether the tenant may take `count` more; the rest as `left`."""
        return count <= self.left(tenant, held, total)

    def left(self, tenant: str, held: Callable[[str], int], total: int) -> int:
        """Places that the tenant may still take. `held`: places that a tenant has; `total`: that are taken in all."""
        others = sum(max(kept - held(name), 0) for name, kept in self._kept.items() if name != tenant)
        return max(self._kept.get(tenant, 0) - held(tenant), self.most - total - others)
