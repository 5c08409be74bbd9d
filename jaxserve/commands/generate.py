"""`jaxserve generate`: prompts completed on the terminal.

There is a flag for every field of `SamplingParams`.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxserve.commands.settings_flags import WideFormatter, add_settings, config_from_flags, whole_numbers
from jaxserve.core.errors import StepFailed
from jaxserve.core.plan import TokenLogprobs
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.settings import require

if TYPE_CHECKING:
    from jaxserve.engine.outputs import SequenceOutput
    from jaxserve.llm import LLM
    from jaxserve.text.prompts import Prompt

_EXAMPLES = """\
examples:
  jaxserve generate --prompt "KING RICHARD:" --max-tokens 60
  echo "Good morrow, cousin" | jaxserve generate --temperature 0 --logprobs 3
  jaxserve generate --prompt "To be, or not to be" --max-tokens 0 --prompt-logprobs 3     only scores the prompt
  jaxserve generate --prompt "ROMEO:" --logit-bias 15=-100 --logit-bias 27=5
  jaxserve generate --model ./Qwen3-0.6B --chat --prompt "Hello" --n 3 --sampling-seed 7
"""

_MODELS_OWN = "default: the model's own"


def _token_bias(text: str) -> tuple[int, float]:
    """ "15=-100" as (15, -100.0)."""
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give a token id and what is added to its logit, as in 15=-100"
        ) from error


class _OneBiasEach(argparse.Action):
    """Repetitions of the flag as one mapping."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        token, bias = values
        biases: dict[int, float] = getattr(namespace, self.dest, {})
        if token in biases:
            raise argparse.ArgumentError(self, f"token {token} has two biases: give one")
        setattr(namespace, self.dest, biases | {token: bias})


_FLAGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("max_tokens", {"type": int, "help": "most output tokens (default 128)"}),
    ("min_tokens", {"type": int, "help": "no end before so many output tokens"}),
    ("n", {"type": int, "help": "completions of each prompt (default 1)"}),
    ("temperature", {"type": float, "help": f"0 is greedy ({_MODELS_OWN})"}),
    ("top_k", {"type": int, "help": f"keep the k likeliest tokens; 0: all ({_MODELS_OWN})"}),
    ("top_p", {"type": float, "help": f"keep this much probability ({_MODELS_OWN})"}),
    ("min_p", {"type": float, "help": f"keep what is at least so likely, relative to the likeliest ({_MODELS_OWN})"}),
    ("seed", {"type": int, "help": "the same tokens every time"}),
    ("presence_penalty", {"type": float, "help": "-2 to 2: against tokens that are in the output"}),
    ("frequency_penalty", {"type": float, "help": "-2 to 2: as often as they are in it"}),
    ("repetition_penalty", {"type": float, "help": f"above 1: against tokens of prompt and output ({_MODELS_OWN})"}),
    (
        "logit_bias",
        {
            "type": _token_bias,
            "action": _OneBiasEach,
            "metavar": "TOKEN=BIAS",
            "help": "-100 to 100, added to this token's logit: 15=-100 bans token 15; may be repeated",
        },
    ),
    ("stop", {"action": "append", "metavar": "TEXT", "help": "end at this text; may be repeated"}),
    ("stop_token_ids", {"type": whole_numbers, "metavar": "IDS", "help": "end at these tokens: 2,13"}),
    ("include_stop_str_in_output", {"action": "store_true", "help": "keep what ended it"}),
    ("ignore_eos", {"action": "store_true", "help": "go on after the model's own end"}),
    ("skip_special_tokens", {"action": argparse.BooleanOptionalAction, "help": "leave them out of the text (default)"}),
    ("logprobs", {"type": int, "metavar": "K", "help": "print each token's log-probability, and the K likeliest"}),
    ("prompt_logprobs", {"type": int, "metavar": "K", "help": "the same of the prompt's tokens, given those before"}),
)


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "generate", help="complete prompts and print them as they come", epilog=_EXAMPLES, formatter_class=WideFormatter
    )
    parser.set_defaults(run=run)
    group = parser.add_argument_group("generation")
    group.add_argument("--prompt", action="append", help="a prompt; may be repeated; default: standard input")
    group.add_argument("--chat", action="store_true", help="send each prompt as a user's message through the template")
    for name, options in _FLAGS:
        flag = "sampling-seed" if name == "seed" else name.replace("_", "-")  # --seed is the engine's
        if "type" in options:
            options = {"metavar": name.split("_")[-1].upper()} | options
        group.add_argument(f"--{flag}", dest=f"sample_{name}", default=argparse.SUPPRESS, **options)
    add_settings(parser)


def run(given: argparse.Namespace) -> int:
    from jaxserve.llm import LLM

    config = config_from_flags(given)
    require(
        not config.model.skip_tokenizer_init, "skip_tokenizer_init", True,
        "false: this command reads and prints text (LLM and jaxserve serve take token ids)",
    )  # fmt: skip
    asked = {name[7:]: value for name, value in vars(given).items() if name.startswith("sample_")}
    asked = {"max_tokens": 128} | asked
    SamplingParams(**asked)  # a flag out of range is told before the model is loaded
    prompts = given.prompt or [sys.stdin.read().rstrip("\n")]
    llm = LLM(config=config, progress=sys.stderr.isatty())
    params = SamplingParams(**(dict(llm.sampling_defaults) | asked))
    wanted: list[tuple[Prompt, str]] = [
        (llm.encode_chat([{"role": "user", "content": prompt}]), "") if given.chat else (prompt, prompt)
        for prompt in prompts
    ]
    requests = [llm.make_request(prompt, params) for prompt, _ in wanted]
    for request in requests:
        llm.engine.check(request)  # before the first is printed
    for request, (_, shown) in zip(requests, wanted, strict=True):
        _complete(llm, list(request.prompt), shown, params)
    return 0


def _complete(llm: "LLM", prompt: list[int], shown: str, params: SamplingParams) -> None:
    """One completion streams; several are printed one below the other. `prompt`: its token ids."""
    if params.n == 1:
        pieces: list[SequenceOutput] = []
        print(shown, end="", flush=True)
        for piece in llm.stream(prompt, params):
            print(piece.text, end="", flush=True)
            pieces.append(piece)
            if piece.error is not None:
                raise StepFailed(piece.error)
        print()
        if params.prompt_logprobs is not None:
            _print_prompt_logprobs(llm, prompt[0], [entry for piece in pieces for entry in piece.prompt_logprobs])
            if params.logprobs is not None:
                print("--- output")
        _print_logprobs(llm, [entry for piece in pieces for entry in piece.logprobs])
        return
    (output,) = llm.generate([prompt], params)
    if output.prompt_logprobs is not None:
        _print_prompt_logprobs(llm, prompt[0], [entry for entry in output.prompt_logprobs if entry])
    for completion in output.outputs:
        if completion.error is not None:
            raise StepFailed(completion.error)
        print(f"--- {completion.index + 1} of {params.n}\n{shown}{completion.text}")
        _print_logprobs(llm, completion.logprobs or [])


def _print_prompt_logprobs(llm: "LLM", first: int, entries: Sequence[TokenLogprobs]) -> None:
    """Under a mark, a line a token; the first has no log-probability, since nothing comes before it."""
    print(f"--- prompt\n{'-':>9}  {_named(llm, first)}")
    _print_logprobs(llm, entries)


def _print_logprobs(llm: "LLM", entries: Sequence[TokenLogprobs]) -> None:
    for entry in entries:
        likeliest = "  ".join(f"{_named(llm, token)} {logprob:.3f}" for token, logprob in entry.top)
        print(f"{entry.logprob:9.3f}  {_named(llm, entry.token):<14} {likeliest}".rstrip())


def _named(llm: "LLM", token: int) -> str:
    return str(token) if llm.tokenizer is None else repr(llm.tokenizer.token_text(token))
