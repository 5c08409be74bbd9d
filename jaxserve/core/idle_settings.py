"""Settings that were chosen and change nothing, since another setting leaves them without work.

They are no errors: a file may hold the settings of two policies, and a flag say which one runs. But whoever turns a
knob that is connected to nothing should hear of it. What a setting hangs on stands beside it in its section (see
`core.settings.setting`), but for objectives: whether those are there, tenants decide too.
"""

from collections.abc import Iterator, Mapping

from jaxserve.core.config import EngineConfig, all_settings
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.settings import Setting
from jaxserve.core.tenants import Tenants


def idle_settings(config: EngineConfig, tenants: Tenants | None = None) -> list[str]:
    """A sentence for each setting that is not its default and has no effect, or less than it says.

    `tenants`: whose objectives count; None: those of the file that the settings name, read where that decides.
    Raises ConfigError if it cannot be.
    """
    settings = list(all_settings())
    values = {s.name: getattr(getattr(config, s.section), s.name) for s in settings}
    replaced_by = {name: s.name for s in settings if values[s.name] is not None for name in s.replaces}
    chosen = [s for s in settings if values[s.name] != s.default]
    idle = [(s.name, why) for s in chosen if (why := _why_idle(s, values, replaced_by))]
    return [
        *(f"{name} = {values[name]!r} {why}" for name, why in idle),
        *_without_objective(config.scheduler, tenants),
        *_about_tenants(config, tenants),
    ]


def _why_idle(setting: Setting, values: Mapping[str, object], replaced_by: Mapping[str, str]) -> str | None:
    """None where it does what it says."""
    if setting.only_with:
        other, *wanted = setting.only_with
        if values[other] not in wanted:
            return f"has no effect with {other} = {values[other]!r}: it is for {' and '.join(map(repr, wanted))}"
    if setting.needs and not values[setting.needs]:
        return f"has no effect without {setting.needs}"
    if setting.name in replaced_by:
        other = replaced_by[setting.name]
        return f"has no effect: {other} = {values[other]!r} replaces it"
    value, most = values[setting.name], values.get(setting.at_most or "")
    if isinstance(value, int) and isinstance(most, int) and value > most:
        return f"is more than {setting.at_most} = {most}, which bounds it"
    return None


def _without_objective(config: SchedulerConfig, tenants: Tenants | None) -> Iterator[str]:
    for name, value, objective, with_own, without in (
        ("admission", "slo", "ttft_slo_s", "refuses only requests that bring an objective of their own",
         "refuses no request"),
        ("policy", "adaptive", "tpot_slo_s", "fits its steps only to requests that bring an objective of their own",
         "fits its steps to no request"),
        ("ordering", "slack", "ttft_slo_s", "is like 'fcfs' for requests that bring no objective of their own",
         "is like 'fcfs'"),
    ):  # fmt: skip
        if getattr(config, name) != value:
            continue
        known = tenants or Tenants.of(config)
        if all(getattr(who, objective) is None for who in (config, *known)):
            then = with_own if any(tenant.may_raise_priority for tenant in known) else without
            yield f"{name} = {value!r} {then}: set {objective}, here or for tenants"


def _about_tenants(config: EngineConfig, tenants: Tenants | None) -> Iterator[str]:
    scheduler, batches = config.scheduler, config.batches
    if scheduler.tenants is None or (tenants is None and batches.batch_dir is None):
        return
    known = tenants or Tenants.of(scheduler)
    if any(tenant.weight != 1.0 for tenant in known) and scheduler.ordering != "fair":
        yield (
            f"tenants' weight has no effect on who is served with ordering = {scheduler.ordering!r}, and shares the "
            "queue and the cached prefixes only: 'fair' shares the service too"
        )
    if batches.batch_dir is not None and batches.batch_tenant not in {tenant.name for tenant in known}:
        yield (
            f"batch_tenant = {batches.batch_tenant!r} is nobody in {scheduler.tenants}: lines of batches run as "
            "'default', with its class and share"
        )
