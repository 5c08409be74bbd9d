"""The command line. The commands of the lab have a module each in `jaxserve.commands`."""

import argparse
import sys
from collections.abc import Callable, Sequence

from jaxserve import __version__
from jaxserve.commands import buckets, calibrate, doctor, generate, plan, replay, simulate, timeline, tune
from jaxserve.commands.settings_flags import WideFormatter, add_settings, read_config
from jaxserve.core.errors import ConfigError, JaxserveError
from jaxserve.core.tenants import Tenants
from jaxserve.sim.recorder import open_recording, record_engine

_EXAMPLES = """\
examples:
  jaxserve serve                                    the model that ships with jaxserve, on 127.0.0.1:8000
  jaxserve serve --config configs/h200.toml --model meta-llama/Llama-3.1-8B-Instruct
  jaxserve generate --prompt "KING RICHARD:" --max-tokens 60
  echo "Good morrow, cousin" | jaxserve generate --temperature 0
  jaxserve convert ./Qwen3-0.6B ./qwen3-orbax        then: jaxserve serve --model ./qwen3-orbax

  curl localhost:8000/v1/completions -d '{"prompt": "ROMEO:", "max_tokens": 40, "stream": true}'

Settings come from --config (TOML, one table a section) and from flags, which go over it.
Every setting is documented in docs/settings.md.
"""


_CONVERT = """\
Write a Hugging Face model as an Orbax checkpoint: weights fused as the engine holds them, in the type in which they are
stored, beside the configuration, the tokenizer and the chat template. Whatever takes a model takes the new folder."""

_CONVERT_EXAMPLES = """\
examples:
  jaxserve convert ./Qwen3-0.6B ./qwen3-orbax
  jaxserve convert Qwen/Qwen3-0.6B ./qwen3-orbax     a hub id is downloaded first
  jaxserve serve --model ./qwen3-orbax
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for anything that the caller can fix."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        return given.run(given)
    except JaxserveError as error:
        print(f"jaxserve: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxserve",
        description="Continuous-batching LLM serving for JAX.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"jaxserve {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve", help="serve a model over HTTP", epilog=_EXAMPLES, formatter_class=WideFormatter
    )
    serve.set_defaults(run=_serve)
    group = serve.add_argument_group("recording")
    group.add_argument(
        "--record",
        metavar="FILE",
        help="write requests, decisions and step times, for simulate and replay; no text",
    )
    group.add_argument("--record-tokens", action="store_true", help="token ids of prompts and outputs, too")
    add_settings(serve)

    generate.add(commands)

    convert = commands.add_parser(
        "convert",
        help="turn a Hugging Face directory into an Orbax checkpoint",
        description=_CONVERT,
        epilog=_CONVERT_EXAMPLES,
        formatter_class=WideFormatter,
    )
    convert.add_argument("source", help="a Hugging Face directory or hub id")
    convert.add_argument("destination", help="a folder that does not exist yet; it appears when it is whole")
    convert.set_defaults(run=_convert)

    for command in (plan, simulate, replay, buckets, tune, calibrate, timeline, doctor):
        command.add(commands)
    return parser


def _serve(given: argparse.Namespace) -> int:
    config = read_config(given)
    try:
        from jaxserve.server.serve import serve
        from jaxserve.server.service import Service
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}: pip install starlette uvicorn httptools pydantic") from error

    recording = open_recording(given.record) if given.record else None
    stop_recording: list[Callable[[], None]] = []

    def load() -> Service:
        from jaxserve.engine.loop import EngineLoop
        from jaxserve.llm import LLM

        llm = LLM(config=config)
        if recording is not None:
            recorder = record_engine(llm.engine, recording, llm.config, llm.tenants, tokens=given.record_tokens)
            stop_recording.append(lambda: recorder.close(llm.engine.scheduler.live()))
        scheme = "http" if config.server.ssl_certfile is None else "https"
        place = f"{scheme}://{config.server.host}:{config.server.port}"
        print(f"jaxserve {__version__}: {llm.model_name} on {place}", flush=True)
        if llm.sampling_defaults:
            named = ", ".join(f"{name} {value:g}" for name, value in llm.sampling_defaults.items())
            print(f"sampling defaults of the model: {named} (--generation-config none: none of them)", flush=True)
        return Service(
            EngineLoop(llm.engine),
            llm.make_request,
            llm.tokenizer,
            llm.model_name,
            config.server,
            device=llm.runner,
            cache=config.cache,
            max_num_seqs=config.scheduler.max_num_seqs,
            sampling_defaults=llm.sampling_defaults,
        )

    tenants = Tenants() if config.scheduler.tenants is None else Tenants.from_toml(config.scheduler.tenants)
    try:
        return serve(load, config.server, config.batches, tenants)
    finally:
        for stop in stop_recording:  # the engine's thread has ended: what waits still is written down, without an end
            stop()


def _convert(given: argparse.Namespace) -> int:
    from jaxserve.models.weights import convert

    convert(given.source, given.destination)
    print(f"wrote {given.destination}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
