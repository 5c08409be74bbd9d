"""`jaxserve convert`: a Hugging Face model as an Orbax checkpoint."""

import argparse
from typing import Any

from jaxserve.commands.settings_flags import WideFormatter

_DESCRIPTION = """\
Write a Hugging Face model as an Orbax checkpoint: weights fused as the engine holds them, in the type in which they are
stored (float32 where they are stored in several), beside the configuration, the tokenizer and the chat template.
Whatever takes a model takes the new folder."""

_EXAMPLES = """\
examples:
  jaxserve convert ./Qwen3-0.6B ./qwen3-orbax
  jaxserve convert Qwen/Qwen3-0.6B ./qwen3-orbax     a hub id is downloaded first
  jaxserve serve --model ./qwen3-orbax
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="turn a Hugging Face directory into an Orbax checkpoint",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=WideFormatter,
    )
    parser.add_argument("source", help="a Hugging Face directory or hub id")
    parser.add_argument("destination", help="a folder that does not exist yet; it appears when it is whole")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    from jaxserve.checkpoints.weights import convert

    convert(given.source, given.destination)
    print(f"wrote {given.destination}")
    return 0
