"""The address of a running server, as a command is given it."""

from urllib.parse import urlsplit

from jaxserve.core.errors import ConfigError


def server_url(text: str) -> str:
    """http://HOST:PORT, without a slash at the end. Raises ConfigError for what is none."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or beyond 65535
        good = False
    if not good:
        raise ConfigError(f"url = {text!r} cannot work: give http://HOST:PORT of a running server")
    return text.rstrip("/")
