"""`jaxserve timeline`: what a running server did in its last steps, as a Chrome trace that Perfetto opens."""

import argparse
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from jaxserve.commands.results import expect_file, write_text
from jaxserve.commands.server_url import server_url
from jaxserve.commands.settings_flags import WideFormatter
from jaxserve.core.errors import ConfigError
from jaxserve.metrics.decision_record import from_json, load
from jaxserve.metrics.timeline import chrome_trace

_EXAMPLE = """\
example:
  JAXSERVE_ADMIN_KEY=... jaxserve timeline out.json --url http://127.0.0.1:8000
  curl -H "Authorization: Bearer $JAXSERVE_ADMIN_KEY" localhost:8000/debug/decisions > record.json
  jaxserve timeline out.json --record record.json

then open out.json at https://ui.perfetto.dev (it stays in your browser) or in chrome://tracing.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "timeline",
        help="write what a server did as a trace that Perfetto opens",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=WideFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("out", help="the file to write")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--url", default="http://127.0.0.1:8000", help="a running server (default: %(default)s)")
    source.add_argument("--record", help="or a file that holds an answer of GET /debug/decisions")


def run(given: argparse.Namespace) -> int:
    expect_file(Path(given.out))
    decisions = load(given.record) if given.record else from_json(_ask(given.url))
    write_text(Path(given.out), json.dumps(chrome_trace(decisions)))
    print(f"wrote {given.out}: {len(decisions)} steps; open it at https://ui.perfetto.dev")
    return 0


def _ask(url: str) -> Any:
    request = urllib.request.Request(server_url(url) + "/debug/decisions")
    if key := os.environ.get("JAXSERVE_ADMIN_KEY"):
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise ConfigError(
            f"{url} refused ({error.code} {error.reason}): set JAXSERVE_ADMIN_KEY to the server's admin key, which "
            "`jaxserve serve --admin-key-file` gives it"
        ) from error
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)  # of URLError
        raise ConfigError(f"{url} gives no decisions ({why}): give the URL of a running jaxserve") from error
