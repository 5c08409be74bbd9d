"""Cost models as JSON files: what `jaxserve calibrate` writes and what `configs/cost/` holds."""

import json
import sys
from pathlib import Path
from typing import Any

from jaxserve.core.errors import ConfigError
from jaxserve.core.files import read_json
from jaxserve.costs.fitted import FittedCost
from jaxserve.costs.model import CostModel, FormulaCost

_KINDS = {"formula": FormulaCost, "fitted": FittedCost}
FOLDERS = (
    Path(__file__).parents[2] / "configs" / "cost",  # a source tree
    Path(sys.prefix) / "share" / "jaxserve" / "cost",  # an installed package
)


def find_cost(name: str | Path) -> CostModel:
    """A cost model by its name in `configs/cost`, or by the path of a file; ConfigError if there is none."""
    places = [Path(name), *(folder / f"{name}.json" for folder in FOLDERS)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        known = sorted({file.stem for folder in FOLDERS for file in folder.glob("*.json")})
        raise ConfigError(f"cost = {str(name)!r} is not known: give a file, or one of {', '.join(known)}")
    return load_cost(path)


def load_cost(path: str | Path) -> CostModel:
    """Raises ConfigError for a file that holds no cost model."""
    fields = read_json(path, "`jaxserve calibrate` makes a cost model")
    if fields.get("kind") not in _KINDS:
        raise ConfigError(f"{path}: no cost model: `jaxserve calibrate` makes one, configs/cost/ holds examples")
    try:
        return cost_from_json(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: a damaged cost model ({error}): make it again with `jaxserve calibrate`") from error


def cost_from_json(stored: dict[str, Any]) -> CostModel:
    """The model that `to_json` of one of the kinds gave."""
    return _KINDS[stored["kind"]].from_json(stored)


def save_cost(path: str | Path, model: FormulaCost | FittedCost, belongs_to: dict[str, Any] | None = None) -> None:
    """`belongs_to`: the machine and the settings that the figures were measured with."""
    stored = model.to_json() | {"belongs_to": belongs_to or {}}
    Path(path).write_text(json.dumps(stored, indent=1) + "\n")
