"""A flag for every setting: what the sections of the configuration declare is what the command line takes."""

import argparse
import sys
from typing import Any, get_args

from jaxserve.core.config import SERVER_SECTIONS, EngineConfig, all_settings
from jaxserve.core.idle_settings import idle_settings
from jaxserve.core.settings import Setting
from jaxserve.core.tenants import Tenants


class WideFormatter(argparse.RawDescriptionHelpFormatter):
    """Room for long flags."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=120)


def add_settings(parser: argparse.ArgumentParser, *, serves: bool = False) -> None:
    """A flag for every setting, grouped by section; those of the server if the command `serves`. Unset flags are absent
    from the result."""
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings; configs/ holds examples")
    groups: dict[str, Any] = {}
    for setting in all_settings():
        if setting.section in SERVER_SECTIONS and not serves:
            continue
        group = groups.setdefault(setting.section, parser.add_argument_group(setting.section))
        flag = "--" + setting.name.replace("_", "-")
        options: dict[str, Any] = {"dest": f"set_{setting.name}", "default": argparse.SUPPRESS, "help": _help(setting)}
        if setting.annotation is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        else:
            group.add_argument(flag, type=_reader(setting), metavar=setting.name.split("_")[-1].upper(), **options)


def _help(setting: Setting) -> str:
    shown = "none" if setting.default in (None, ()) else setting.default
    return f"{setting.meaning} (default: {shown})".replace("%", "%%")


def _reader(setting: Setting) -> Any:
    kinds = [kind for kind in (get_args(setting.annotation) or (setting.annotation,)) if kind is not type(None)]
    if setting.choices or str in kinds:
        return str
    if setting.default == ():
        return whole_numbers
    return float if float in kinds else int


def whole_numbers(text: str) -> tuple[int, ...]:
    """ "8,64" as (8, 64)."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers separated by commas, as in 8,64") from error


def given_settings(given: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as flags, by their flat names."""
    return {name[4:]: value for name, value in vars(given).items() if name.startswith("set_")}


def config_from_flags(given: argparse.Namespace, *, say_idle: bool = True) -> EngineConfig:
    """The file that --config names, and the flags over it. Settings without effect are named on standard error."""
    settings = given_settings(given)
    if given.config:
        config = EngineConfig.from_toml(given.config, **settings)
    else:
        config = EngineConfig.from_settings(**settings)
    if say_idle:
        name_idle(config)
    return config


def name_idle(config: EngineConfig, tenants: Tenants | None = None) -> None:
    """Say on standard error which settings have no effect. `tenants`: None: those of the file that they name."""
    for sentence in idle_settings(config, tenants):
        print(f"jaxserve: note: {sentence}", file=sys.stderr)
