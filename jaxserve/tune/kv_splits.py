"""How tenants split the KV pool: the share that is each one's own, and the most that it may take.

    given                        as the tenants' file says
    shared                       no share is anybody's own, and nobody has a limit
    chat:0.5..1+batch:0..0.9     tenant:guaranteed..most; who is not named has 0..1

Guaranteed shares are lent while they lie idle and taken back by preemption; a limit is never exceeded
(`sched.tenant_ledger`). So a guarantee costs others little until its owner comes, a limit costs its owner at once.
"""

import dataclasses
from collections.abc import Collection, Iterator

from jaxserve.core.errors import ConfigError
from jaxserve.core.tenants import Tenants

GIVEN, SHARED = "given", "shared"
GUARANTEES = (0.25, 0.5)
LIMITS = (0.5, 0.75)


def split(tenants: Tenants, text: str) -> Tenants:
    """The same tenants with the shares that `text` says.

    Raises:
      ConfigError: a tenant that does not exist, or shares that cannot work.
    """
    if text == GIVEN:
        return tenants
    shares = {} if text == SHARED else dict(_share(tenants, text, part) for part in text.split("+"))
    return Tenants(
        dataclasses.replace(tenant, kv_guaranteed=low, kv_max=high)
        for tenant in tenants
        for low, high in [shares.get(tenant.name, (0.0, 1.0))]
    )


def splits(tenants: Tenants, seen: Collection[str]) -> tuple[str, ...]:
    """Those worth a try: the file's, none, and for each tenant that sends requests a guarantee or a limit of its own.

    `seen`: names of tenants as the requests say them; fewer than two have nothing to split.
    """
    names = sorted({tenants[name].name for name in seen})
    found: dict[tuple[tuple[float, float], ...], str] = {}
    if len(names) > 1:
        for text in (GIVEN, SHARED, *_single(names)):
            found.setdefault(tuple((t.kv_guaranteed, t.kv_max) for t in split(tenants, text)), text)
    return tuple(found.values())


def _single(names: list[str]) -> Iterator[str]:
    for name in names:
        yield from (f"{name}:{share}..1" for share in GUARANTEES)
        yield from (f"{name}:0..{share}" for share in LIMITS)


def _share(tenants: Tenants, text: str, part: str) -> tuple[str, tuple[float, float]]:
    name, _, shares = part.rpartition(":")
    low, dots, high = shares.partition("..")
    known = [tenant.name for tenant in tenants]
    if name not in known:
        raise ConfigError(f"kv_split = {text!r}: no tenant {name!r}; known: {', '.join(known)}; or {GIVEN}, {SHARED}")
    try:
        return name, (float(low), float(high if dots else "none"))
    except ValueError:
        raise ConfigError(f"kv_split = {text!r} cannot work: give TENANT:GUARANTEED..MOST+..") from None
