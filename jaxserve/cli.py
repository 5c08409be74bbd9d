"""The command line: what all commands share. Each is a module of `jaxserve.commands`."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from jaxserve import __version__
from jaxserve.commands import (
    buckets,
    calibrate,
    convert,
    doctor,
    generate,
    plan,
    replay,
    serve,
    simulate,
    timeline,
    tune,
)
from jaxserve.core.config import SERVER_SECTIONS, all_settings
from jaxserve.core.errors import JaxserveError

COMMANDS = (serve, generate, convert, plan, simulate, replay, buckets, tune, calibrate, timeline, doctor)
"""In the order in which the help lists them."""

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 for a finding (of `doctor`, say), or 2 for anything that the caller can fix."""
    try:
        return _run(arguments)
    except BrokenPipeError:  # whoever reads what is printed has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush would complain again
        return 141  # what a shell says of SIGPIPE


def _run(arguments: Sequence[str] | None) -> int:
    try:
        given, unknown = _parser().parse_known_args(arguments)
        if unknown:
            _refuse(given.command, unknown[0])
        return given.run(given)
    except JaxserveError as error:
        print(f"jaxserve: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print(
            "jaxserve: this machine has not enough memory for it: ask for less, or for fewer at once", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        sys.stdout.flush()


class _Parser(argparse.ArgumentParser):
    """An error is one line: below the usage of a hundred flags nobody would find it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}: see {self.prog} --help\n")


def _refuse(command: argparse.ArgumentParser, argument: str) -> NoReturn:
    """An argument that the command does not take; perhaps another one was meant."""
    flag = argument.partition("=")[0]
    if flag.lstrip("-").removeprefix("no-").replace("-", "_") in {
        setting.name for setting in all_settings() if setting.section in SERVER_SECTIONS
    }:
        command.error(f"{flag} is a flag of jaxserve serve alone")
    flags = re.findall(r"--[a-z][a-z-]+", command.format_help())
    near = difflib.get_close_matches(flag, flags, 1, cutoff=0.7)
    command.error(f"{argument} is not known" + (f" (did you mean {near[0]}?)" if near else ""))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jaxserve",
        description="Continuous-batching LLM serving for JAX.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"jaxserve {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    for command in commands.choices.values():
        command.set_defaults(command=command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
