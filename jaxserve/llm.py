"""The Python API: one object over an engine, its runner and its tokenizer.

from jaxserve import LLM, SamplingParams

llm = LLM("embedded", max_num_seqs=16)
for output in llm.generate(["Enter HAMLET.", "Exeunt"], SamplingParams(max_tokens=64)):
    print(output.outputs[0].text)
"""

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from numbers import Integral
from pathlib import Path
from typing import Any

from jaxserve.assembly import (
    find_folder,
    find_geometry,
    find_tokenizer,
    find_weights,
    make_engine,
    make_runner,
    warm_up,
)
from jaxserve.checkpoints.generation_config import read_generation_config
from jaxserve.core.clock import MonotonicClock
from jaxserve.core.config import SERVER_SECTIONS, EngineConfig, all_settings
from jaxserve.core.errors import ConfigError, InvalidParameter, InvalidRequest, JaxserveError, StepFailed
from jaxserve.core.idle_settings import idle_settings
from jaxserve.core.plan import TokenLogprobs
from jaxserve.core.progress import progress_bar
from jaxserve.core.sampling import MAX_LOGPROBS, SamplingParams
from jaxserve.core.sequence import Request
from jaxserve.core.settings import require
from jaxserve.core.tenants import DEFAULT, Tenants
from jaxserve.engine.collect import Collector, RequestOutput
from jaxserve.engine.limits import Limits
from jaxserve.engine.offline import run
from jaxserve.engine.outputs import SequenceOutput
from jaxserve.models.config import ModelConfig
from jaxserve.models.params import check_params, place_params
from jaxserve.runtime.programs.compilation import use_compilation_cache
from jaxserve.runtime.runner import ModelRunner, Processor
from jaxserve.text.prompts import Prompt, as_prompts, content_of, text_of
from jaxserve.text.tokenizer import Tokenizer, template_options


class LLM:
    """A model ready to generate, in this process.

    Args:
      model: a Hugging Face directory or hub id, a converted checkpoint, or "embedded"; or give `params`.
      params, model_config: weights as a pytree (see `jaxserve.models`), and what they are; for research.
      tokenizer: a `Tokenizer`, or a directory or hub id that holds one; default: the model's own. With `params` there
        may be none, and with `skip_tokenizer_init` there is none: then prompts are token ids, and outputs have no text.
      logits_processor: traced into the sampler: (logits [R, V], state) -> logits. See the property of this name.
      tenants: who shares the engine, or a TOML file of them (the setting); default: the tenant `default` alone.
      progress: show progress bars.
      settings: any setting of `core.config`, by its flat name; or `config`, all of them.

    Raises:
      ConfigError, CheckpointError, UnsupportedArchitecture, ParamsMismatch, NotEnoughMemory: with what to change.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        params: Any = None,
        model_config: ModelConfig | None = None,
        tokenizer: Tokenizer | str | Path | None = None,
        logits_processor: Processor | None = None,
        tenants: Tenants | str | Path | None = None,
        progress: bool = True,
        config: EngineConfig | None = None,
        **settings: Any,
    ) -> None:
        if model is not None:
            if params is not None:
                raise ConfigError(f"model = {str(model)!r} and params exclude each other: give one of them")
            settings["model"] = str(model)
        if isinstance(tokenizer, str | Path):
            settings["tokenizer"], tokenizer = str(tokenizer), None
        if isinstance(tenants, str | Path):
            settings["tenants"], tenants = str(tenants), None
        for setting in all_settings():
            if setting.section in SERVER_SECTIONS and setting.name in settings:
                require(False, setting.name, settings[setting.name], "none here: it is a setting of `jaxserve serve`")
        self.config = (config or EngineConfig()).replace(**settings)
        self._progress = progress
        self._tenants = Tenants.of(self.config.scheduler) if tenants is None else tenants
        for sentence in idle_settings(self.config, self._tenants) if settings else ():
            warnings.warn(sentence, stacklevel=2)
        use_compilation_cache(self.config.runtime.compilation_cache_dir)
        folder = find_folder(self.config.model, params, model_config)
        self.tokenizer = find_tokenizer(self.config.model, tokenizer, folder)
        self._generation = read_generation_config(self.config.model.generation_config, folder)
        weights = find_weights(self.config.model, params, model_config)
        self.model_config = weights.config
        self.model_name = self.config.model.served_model_name or self._default_name()
        self._clock = MonotonicClock()
        self._ids = itertools.count()
        geometry = find_geometry(self.config, weights)
        self._runner = make_runner(self.config, weights, geometry, logits_processor)
        warm_up(self._runner, self.config.runtime, progress=progress)
        self._eos_token_ids = self._ends()
        self.engine = make_engine(
            self.config, geometry, self._runner, tokenizer=self.tokenizer, tenants=self._tenants, clock=self._clock
        )

    # --- generation -------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts (text or token ids), batched continuously; outputs in the prompts' order.

        A prompt may bring a salt of its own, which keeps its prefix from requests with another: see `text.prompts`.

        `sampling_params`: one for all or one each; None: `get_default_sampling_params()`, here and in `chat`, `stream`.
        """
        batch = as_prompts(prompts)
        return self._complete(batch, [text_of(prompt) for prompt in batch], sampling_params, use_tqdm)

    def chat(
        self,
        messages: Sequence[dict[str, Any]] | Sequence[Sequence[dict[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        use_tqdm: bool | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several, through the model's chat template.

        An output's `prompt` is the text that the template made. `continue_final_message`: go on with the last message;
        else the assistant's turn is opened, unless `add_generation_prompt` is false. `chat_template_kwargs`: more names
        for the template.
        """
        if not isinstance(messages, Sequence) or isinstance(messages, str):
            raise InvalidRequest(
                f"messages is a {type(messages).__name__}: give a list of messages, or of such lists", "messages"
            )
        several = bool(messages) and not isinstance(messages[0], dict)
        conversations: Any = messages if several else [messages]
        tokenizer = self._need_tokenizer("chat")
        options = template_options(chat_template_kwargs, add_generation_prompt, continue_final_message)
        texts = [tokenizer.render_chat(conversation, **options) for conversation in conversations]
        prompts = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return self._complete(prompts, texts, sampling_params, use_tqdm)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[SequenceOutput]:
        """The pieces of one request as they come. Leaving the loop early aborts it."""
        params = sampling_params or self.get_default_sampling_params()
        yield from run(self.engine, [self.make_request(prompt, params)])

    def score(self, prompts: Prompt | Sequence[Prompt], *, top: int = 0) -> list[list[TokenLogprobs | None]]:
        """Log-probability of every token of each prompt given those before it; None for the first.

        Raises:
          StepFailed: a prompt could not be scored.
        """
        if not isinstance(top, Integral) or isinstance(top, bool) or not 0 <= top <= MAX_LOGPROBS:
            raise InvalidParameter("top", top, f"a whole number from 0 to {MAX_LOGPROBS}")
        outputs = self.generate(prompts, SamplingParams(max_tokens=0, prompt_logprobs=top))
        for output in outputs:
            if (error := output.outputs[0].error) is not None:
                raise StepFailed(error)
        return [output.prompt_logprobs or [] for output in outputs]

    def get_default_sampling_params(self) -> SamplingParams:
        """How the model's authors want it sampled: `generation_config.json` over the defaults of SamplingParams."""
        return SamplingParams(**self._generation.sampling)

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """A conversation as token ids, through the model's chat template."""
        return self._need_tokenizer("chat").encode_chat(messages)

    # --- for research -----------------------------------------------------------------------------------------

    def make_request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        request_id: str | None = None,
        cache_salt: str = "",
        *,
        tenant: str = DEFAULT,
        priority: int | None = None,
        ttft_slo_s: float | None = None,
        tpot_slo_s: float | None = None,
    ) -> Request:
        """A request for `engine.add`; then step by hand with `engine.step()` while `engine.has_work`.

        `tenant`, and what the tenant's settings say where it is None: see `Request`.
        """
        content, salt = content_of(prompt)
        if isinstance(content, str):
            content = self._need_tokenizer("a text prompt").encode(content)
        return Request(
            id=request_id if request_id is not None else f"request-{next(self._ids)}",
            prompt=tuple(content),
            params=params,
            arrival_s=self._clock.now(),
            cache_salt=cache_salt or salt,
            eos_token_ids=self._eos_token_ids,
            tenant=tenant,
            priority=priority,
            ttft_slo_s=ttft_slo_s,
            tpot_slo_s=tpot_slo_s,
        )

    def update_params(self, params: Any) -> None:
        """New weights between requests: nothing is compiled, the prefix cache is dropped.

        Raises:
          JaxserveError: requests are under way. ParamsMismatch: shapes or types are not those of the old weights.

        Arrays of JAX are shared, not copied: do not donate them to a training step while they serve. NumPy's are
        copied.
        """
        self._between_requests("weights")
        check_params(params, self.model_config)
        self._runner.update_params(place_params(params, self._runner.params))
        self.engine.scheduler.blocks.drop_prefixes()

    @property
    def logits_processor(self) -> Processor | None:
        """(logits [R, V], state) -> logits: a function of JAX, jitted or not, that every token is sampled through.

        It comes after bans, biases and penalties and before the temperature. `state.tokens` [R, C] holds each row's
        prompt and output by position, `state.rows` its numbers: `positions` (tokens so far), `prompt_lens`,
        `temperature`, ... (see `runtime.sampling.sampler`). Assign another, or None, between requests: what samples is
        compiled then, once a batch size; prefixes stay cached, they know nothing of sampling.

        Raises:
          JaxserveError: on assignment, if requests are under way.
        """
        return self._runner.programs.processor

    @logits_processor.setter
    def logits_processor(self, processor: Processor | None) -> None:
        self._between_requests("the processor of logits")
        self._runner.programs.use_processor(processor)

    def _between_requests(self, what: str) -> None:
        self.engine.drain()
        if self.engine.scheduler.live():
            raise JaxserveError(f"{what} can change between requests only: finish or abort those under way first")

    def close(self) -> None:
        """Give back what outlives a request: the folder of the disk tier. Also happens when the program ends."""
        self._runner.close()

    @property
    def sampling_defaults(self) -> Mapping[str, float | int]:
        """What `generation_config.json` says of sampling, by the names of SamplingParams."""
        return self._generation.sampling

    @property
    def tenants(self) -> Tenants:
        return self._tenants

    @property
    def params(self) -> Any:
        return self._runner.params

    @property
    def runner(self) -> ModelRunner:
        return self._runner

    @property
    def limits(self) -> Limits:
        return self.engine.limits

    # --- parts ------------------------------------------------------------------------------------------------

    def _default_name(self) -> str:
        model = self.config.model.model
        return Path(model).name if Path(model).is_dir() else model

    def _ends(self) -> tuple[int, ...]:
        ends = self.tokenizer.eos_token_ids if self.tokenizer else ()
        ends = {*ends, *self.model_config.eos_token_ids, *self._generation.eos_token_ids}
        return tuple(sorted(end for end in ends if 0 <= end < self.model_config.vocab_size))

    def _need_tokenizer(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidRequest(f"{what} needs a tokenizer and there is none: give token ids, or LLM(tokenizer=...)")
        return self.tokenizer

    def _complete(
        self,
        prompts: Sequence[Prompt],
        texts: Sequence[str | None],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool | None,
    ) -> list[RequestOutput]:
        """`texts`: of the prompts, as their outputs tell them."""
        asked = self.get_default_sampling_params() if sampling_params is None else sampling_params
        params = _one_each(asked, len(prompts))
        requests = [self.make_request(prompt, p) for prompt, p in zip(prompts, params, strict=True)]
        show = self._progress if use_tqdm is None else use_tqdm
        collectors = {r.id: Collector(r, text) for r, text in zip(requests, texts, strict=True)}
        tokens = 0
        with (
            progress_bar(len(requests), "Generating", "request", show=show) as bar,
            closing(run(self.engine, requests)) as outputs,
        ):
            for output in outputs:
                tokens += len(output.tokens)
                if collectors[output.request_id].add(output):
                    bar.update()
                    bar.set_postfix(output_tokens=tokens, refresh=False)
        return [collectors[r.id].output for r in requests]


def _one_each(params: SamplingParams | Sequence[SamplingParams], count: int) -> Sequence[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [params] * count
    if not isinstance(params, Sequence) or not all(isinstance(one, SamplingParams) for one in params):
        raise InvalidRequest(
            f"sampling_params = {params!r}: give a SamplingParams, or a list of them", "sampling_params"
        )
    if len(params) != count:
        raise InvalidRequest(
            f"{len(params)} sampling_params for {count} prompts: give one, or one each", "sampling_params"
        )
    return params


__all__ = ["LLM", "RequestOutput", "SamplingParams"]
