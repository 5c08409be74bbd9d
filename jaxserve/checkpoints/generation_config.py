"""`generation_config.json`: how a model's authors want it sampled, and which tokens end its answers.

Read as vLLM reads it (`ModelConfig.get_diff_sampling_param`): what is not named here changes nothing, `do_sample`
neither, since a temperature says as much.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxserve.core.errors import CheckpointError, ConfigError, InvalidParameter
from jaxserve.core.fields import Fields, read_json
from jaxserve.core.sampling import SamplingParams

FILE = "generation_config.json"
OFF = ("none", "vllm")
"""Values of the setting that mean SamplingParams' own defaults; the second is vLLM's name for it."""
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """`sampling`: fields of `SamplingParams`, for requests that do not set them."""

    sampling: Mapping[str, float | int] = field(default_factory=dict[str, float | int])
    eos_token_ids: tuple[int, ...] = ()


def read_generation_config(setting: str, model: Path | None) -> GenerationConfig:
    """What the setting `generation_config` names: "auto", the file beside the model's weights; a folder; or nothing.

    Raises:
      ConfigError: the folder has no such file. CheckpointError: a value is none that can be sampled with.
    """
    if setting in OFF:
        return GenerationConfig()
    if setting != "auto":
        path = Path(setting).expanduser() / FILE
        if not path.is_file():
            raise ConfigError(f"generation_config = {setting!r} cannot work: give auto, none, or a folder with {FILE}")
    elif model is None or not (path := model / FILE).is_file():
        return GenerationConfig()
    fields = Fields(read_json(path), path)
    said = fields.keys()
    sampling: dict[str, float | int] = {name: fields.number(name) for name in _NUMBERS if name in said}
    for name, ours in (("top_k", "top_k"), ("max_new_tokens", "max_tokens")):
        if name in said:
            sampling[ours] = fields.integer(name)
    try:
        SamplingParams(**sampling)  # pyright: ignore[reportArgumentType]
    except InvalidParameter as error:
        raise CheckpointError(path, str(error), "repair it, or start with generation_config = none") from error
    return GenerationConfig(sampling, fields.token_ids("eos_token_id"))
