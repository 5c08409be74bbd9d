"""Tenants from a file: who a key means, and what cannot work."""

import functools
import itertools
import operator
from pathlib import Path

import pytest

from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.core.tenants import Tenant, Tenants

SHIPPED = Path(__file__).parent.parent.parent / "configs" / "tenants.toml"


def test_the_shipped_file_loads() -> None:
    tenants = Tenants.from_toml(SHIPPED)
    assert [t.name for t in tenants] == ["chat", "batch", "default"]
    assert tenants["chat"].keys == ("change-me-chat",) and tenants["chat"].ttft_slo_s == 0.5


def test_settings_name_their_file(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text("[tenants.a]\nweight = 2")
    named = Tenants.of(EngineConfig.from_settings(tenants=str(path)).scheduler)
    assert named == Tenants([Tenant(name="a", weight=2.0)]) != Tenants.of(EngineConfig().scheduler)
    assert len({named, Tenants.from_toml(path), Tenants()}) == 2


def test_the_unknown_are_default() -> None:
    tenants = Tenants([Tenant(name="a")])
    assert (tenants["nobody"].name, tenants["a"].name) == ("default", "a")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tenants.a]\nweigth = 2", "weigth"),
        ("[tenants.a]\nweight = 0", "tenants.a.weight"),
        ("[tenants.a]\nweight = 'two'", "a number"),
        ("[tenants.a]\npriority = 1.5", "whole number"),
        ("[tenants.a]\nkeys = 'k'", "list of texts"),
        ("[tenants.a]\nkeys = ['k']\n[tenants.b]\nkeys = ['k']", "nobody|no other"),
        ("[tenants.a]\nkv_guaranteed = 0.7\n[tenants.b]\nkv_guaranteed = 0.7", "at most 1"),
        ("[tenants.a]\nkv_guaranteed = 0.7\nkv_max = 0.5", "kv_max"),
        ("[tenants]\na = 3", "table"),
        ("[other]\na = 3", "tenants.NAME"),
        ("[tenants", "TOML"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        Tenants.from_toml(path)


def test_shares_of_the_whole_add_up_to_it_in_floating_point_too() -> None:
    shares = (0.05, 0.55, 0.3, 0.1)
    assert functools.reduce(operator.add, shares) > 1.0  # as `sum` did before Python 3.12
    for some in itertools.permutations(shares):
        Tenants(Tenant(name=str(i), kv_guaranteed=share) for i, share in enumerate(some))
    with pytest.raises(ConfigError, match="at most 1"):
        Tenants(Tenant(name=str(i), kv_guaranteed=share) for i, share in enumerate((0.5, 0.5001)))


def test_a_missing_file_says_so() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Tenants.from_toml("/no/such/file")
