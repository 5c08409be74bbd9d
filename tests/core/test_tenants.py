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
        ("[tenants.a]\nmay_raise_priority = 1", "true or false"),
        ("[tenants.a]\nshares_prefixes = 'yes'", "true or false"),
        ("[tenants.a]\ntokens_per_minute = 1.5", "whole number"),
        ("[tenants.a]\nmax_concurrent = 0", "tenants.a.max_concurrent"),
        ("[tenants.a]\nmax_waiting = true", "whole number"),
        ("[tenants.a]\nbatch_share = 0.0", "tenants.a.batch_share"),
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


@pytest.mark.parametrize(
    ("asked", "may", "cannot"), [(None, 1, 1), (-100, -100, 1), (0, 0, 1), (1, 1, 1), (7, 7, 7), (99, 99, 17)]
)
def test_a_request_may_lower_its_priority_and_raise_it_only_where_its_tenant_may(asked, may, cannot) -> None:
    assert Tenant(name="a", priority=1, may_raise_priority=True).allowed_priority(asked) == may
    assert Tenant(name="a", priority=1).allowed_priority(asked) == cannot


@pytest.mark.parametrize(
    ("asked", "promised", "may", "cannot"),
    [
        (None, None, None, None), (None, 1.0, 1.0, 1.0), (1e-4, 1.0, 1e-4, 1.0), (5.0, 1.0, 5.0, 5.0),
        (1e-4, None, 1e-4, None),
    ],
)  # fmt: skip
def test_an_objective_of_a_request_is_never_tighter_than_its_tenants(asked, promised, may, cannot) -> None:
    assert Tenant(name="a", may_raise_priority=True).allowed_objective(asked, promised) == may
    assert Tenant(name="a").allowed_objective(asked, promised) == cannot


def test_default_alone_may_raise_its_priority_and_beside_others_not() -> None:
    assert Tenants()["default"].may_raise_priority
    assert not Tenants([Tenant(name="a")])["default"].may_raise_priority
    assert not Tenants([Tenant(name="default")])["default"].may_raise_priority


def test_names_of_keys_become_tenants_like_default() -> None:
    alone = Tenants()
    assert alone.with_names(["default"]) is alone
    named = alone.with_names(["b", "a", "b"])
    assert [t.name for t in named] == ["a", "b", "default"] and not any(t.may_raise_priority for t in named)
    given = Tenants([Tenant(name="default", keys=("k",), priority=3, kv_guaranteed=0.5, max_waiting=7)])
    (default, a) = given.with_names(["a"])
    assert default == given["default"]
    assert (a.priority, a.max_waiting, a.keys, a.kv_guaranteed) == (3, 7, (), 0.0)


def test_prefixes_are_a_tenants_own_unless_it_shares_them() -> None:
    tenants = Tenants(
        [Tenant(name="a"), Tenant(name="b", shares_prefixes=True), Tenant(name="c", shares_prefixes=True)]
    )
    scopes = [tenants.prefix_scope(name) for name in ("a", "b", "c", "default", "nobody")]
    assert scopes == ["a", None, None, "default", "default"]


def test_a_file_written_is_a_file_read(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    for tenants in (
        Tenants(),
        Tenants([Tenant(name="a b", keys=("k",), may_raise_priority=True, shares_prefixes=True, tokens_per_minute=9)]),
        Tenants([Tenant(name="default", batch_share=0.5, max_concurrent=3)]),
    ):
        path.write_text(tenants.to_toml())
        assert Tenants.from_toml(path) == tenants
