"""What moving a KV block between the tiers takes: measured when an engine starts, or written down to simulate."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveCosts:
    """Seconds a block. A block on its way to or from the disk passes through the host as well."""

    to_host_s: float
    from_host_s: float
    to_disk_s: float = 0.0
    from_disk_s: float = 0.0

    def host_s(self, blocks: int) -> float:
        """There and back."""
        return blocks * (self.to_host_s + self.from_host_s)

    def disk_s(self, blocks: int) -> float:
        """There and back, the way through the host left out."""
        return blocks * (self.to_disk_s + self.from_disk_s)


NO_MOVES = MoveCosts(to_host_s=0.0, from_host_s=0.0)
