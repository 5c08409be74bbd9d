"""API keys: each belongs to one tenant; one more opens the admin routes.

They come from the `keys` of the tenants' file, from a file of their own (`api_keys_file`, TOML: `tenant = "key"` or
`tenant = ["key", "key"]`), or from the environment (`JAXSERVE_API_KEYS`: `tenant:key,tenant:key`). Keys are kept as
SHA-256 digests, and every comparison looks at all of them, in constant time.
"""

import hashlib
import hmac
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from jaxserve.core.errors import ConfigError
from jaxserve.core.tenants import DEFAULT, Tenant
from jaxserve.server.errors import BadKey

API_KEYS_VARIABLE = "JAXSERVE_API_KEYS"
ADMIN_KEY_VARIABLE = "JAXSERVE_ADMIN_KEY"


class Keys:
    """`tenants`: key -> tenant; none: all are the default tenant. `admin`: opens the admin routes; None: nobody."""

    def __init__(self, tenants: Mapping[str, str] | None = None, admin: str | None = None) -> None:
        self._tenants = [(_digest(key), tenant) for key, tenant in (tenants or {}).items()]
        self._admin = None if admin is None else _digest(admin)

    @classmethod
    def from_settings(
        cls,
        api_keys_file: str | None,
        admin_key_file: str | None,
        known: Iterable[Tenant] = (),
        environment: Mapping[str, str] = os.environ,
    ) -> "Keys":
        """`known`: tenants, whose own keys count too. Raises ConfigError for a bad file or key."""
        tenants = _from_environment(environment.get(API_KEYS_VARIABLE, ""))
        for tenant in known:
            tenants |= {_check_key(key, f"tenants.{tenant.name}.keys"): tenant.name for key in tenant.keys}
        if api_keys_file is not None:
            tenants |= _from_file(Path(api_keys_file).expanduser())
        admin = environment.get(ADMIN_KEY_VARIABLE) or None
        if admin_key_file is not None:
            admin = _read(Path(admin_key_file).expanduser()).strip()
        if admin is not None:
            _check_key(admin, "the admin key")
            if admin in tenants:
                raise ConfigError("the admin key is also a tenant's: give it a key of its own")
        return cls(tenants, admin)

    @property
    def required(self) -> bool:
        return bool(self._tenants)

    @property
    def has_admin(self) -> bool:
        return self._admin is not None

    @property
    def tenants(self) -> list[str]:
        return sorted({tenant for _, tenant in self._tenants})

    def tenant_of(self, authorization: str | None) -> str:
        """The tenant behind an Authorization header. Raises BadKey."""
        if not self._tenants:
            return DEFAULT
        offered = _digest(_bearer(authorization))
        found = None
        for digest, tenant in self._tenants:
            if hmac.compare_digest(digest, offered):
                found = tenant
        if found is None:
            raise BadKey("this API key is not known: send Authorization: Bearer KEY")
        return found

    def is_admin(self, authorization: str | None) -> bool:
        if self._admin is None or authorization is None:
            return False
        return hmac.compare_digest(self._admin, _digest(_bearer(authorization)))


def _bearer(authorization: str | None) -> str:
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise BadKey("an API key is needed: send Authorization: Bearer KEY")
    return key.strip()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _from_environment(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        tenant, colon, key = entry.partition(":")
        if not colon:
            raise ConfigError(f"{API_KEYS_VARIABLE}: an entry has no tenant: write tenant:key,tenant:key")
        found[_check_key(key.strip(), f"{API_KEYS_VARIABLE}, {tenant}")] = tenant.strip()
    return found


def _from_file(path: Path) -> dict[str, str]:
    try:
        table = tomllib.loads(_read(path))
    except tomllib.TOMLDecodeError:  # its message may quote a key
        raise ConfigError(f'{path}: not TOML: write one line a tenant, tenant = "key"') from None
    found: dict[str, str] = {}
    for tenant, value in table.items():
        keys = value if isinstance(value, list) else [value]
        for key in keys:
            if not isinstance(key, str):
                raise ConfigError(f'{path}: {tenant}: write {tenant} = "key" or {tenant} = ["key", "key"]')
            if found.setdefault(_check_key(key, f"{path}, {tenant}"), tenant) != tenant:
                raise ConfigError(f"{path}: {tenant} and {found[key]} have the same key: a key belongs to one tenant")
    if not found:
        raise ConfigError(f'{path}: no keys: write one line a tenant, tenant = "key"')
    return found


def _check_key(key: str, place: str) -> str:
    if len(key) < 8 or not key.isascii() or any(c.isspace() for c in key):
        raise ConfigError(f"{place}: a key is at least 8 ASCII characters without spaces")
    return key


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
