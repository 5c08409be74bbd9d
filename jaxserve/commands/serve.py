"""`jaxserve serve`: a model over HTTP, and, with `--record`, what was asked and decided in a file."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxserve import __version__
from jaxserve.commands.settings_flags import WideFormatter, add_settings, config_from_flags, name_idle
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.core.tenants import Tenants
from jaxserve.sim.recorder import open_recording, record_engine

if TYPE_CHECKING:
    from jaxserve.llm import LLM
    from jaxserve.server.service import Service

_EXAMPLES = """\
examples:
  jaxserve serve                                    the model that ships with jaxserve, on 127.0.0.1:8000
  jaxserve serve --config configs/h200.toml --model meta-llama/Llama-3.1-8B-Instruct
  jaxserve serve --tenants configs/tenants.toml --ordering fair --batch-dir ./batches

  curl localhost:8000/v1/completions -d '{"prompt": "ROMEO:", "max_tokens": 40, "stream": true}'

Settings come from --config (TOML, one table a section) and from flags, which go over it.
Every setting is documented in docs/settings.md.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "serve", help="serve a model over HTTP", epilog=_EXAMPLES, formatter_class=WideFormatter
    )
    parser.set_defaults(run=run)
    group = parser.add_argument_group("recording")
    group.add_argument(
        "--record",
        metavar="FILE",
        help="write requests, decisions and step times, for simulate and replay; no text",
    )
    group.add_argument("--record-tokens", action="store_true", help="token ids of prompts and outputs, too")
    add_settings(parser, serves=True)


def run(given: argparse.Namespace) -> int:
    config = config_from_flags(given, say_idle=False)
    tenants = Tenants.of(config.scheduler)
    name_idle(config, tenants)
    if given.record_tokens and not given.record:
        raise ConfigError("record_tokens: there is no record: give --record FILE beside it")
    try:
        from jaxserve.server.keys import Keys
        from jaxserve.server.serve import serve, service_of
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}: pip install starlette uvicorn httptools pydantic") from error

    keys = Keys.from_settings(config.server.api_keys_file, config.server.admin_key_file, tenants)
    tenants = tenants.with_names(keys.tenants)
    recording = open_recording(given.record) if given.record else None
    stop_recording: list[Callable[[], None]] = []

    def load() -> "Service":
        from jaxserve.llm import LLM

        llm = LLM(config=config, tenants=tenants)
        if recording is not None:
            recorder = record_engine(llm.engine, recording, llm.config, llm.tenants, tokens=given.record_tokens)
            stop_recording.append(lambda: recorder.close(llm.engine.scheduler.live()))
        _greet(llm, config)
        return service_of(llm, config.server)

    try:
        return serve(load, config.server, config.batches, keys)
    finally:
        for stop in stop_recording:  # the engine's thread has ended: what waits still is written down, without an end
            stop()


def _greet(llm: "LLM", config: EngineConfig) -> None:
    scheme = "http" if config.server.ssl_certfile is None else "https"
    print(
        f"jaxserve {__version__}: {llm.model_name} on {scheme}://{config.server.host}:{config.server.port}", flush=True
    )
    if llm.sampling_defaults:
        named = ", ".join(f"{name} {value:g}" for name, value in llm.sampling_defaults.items())
        print(f"sampling defaults of the model: {named} (--generation-config none: none of them)", flush=True)
