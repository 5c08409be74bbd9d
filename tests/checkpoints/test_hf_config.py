"""Hugging Face `config.json` -> ModelConfig, for files as published and for files that must be refused."""

import pytest

from jaxserve.checkpoints import config_from_hf
from jaxserve.core.errors import CheckpointError, ConfigError, UnsupportedArchitecture
from jaxserve.models import ModelConfig, RopeConfig, model_for

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048,
    "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 64, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "torch_dtype": "bfloat16", "use_cache": True, "rope_theta": 500000.0,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
}  # fmt: skip
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584,
    "intermediate_size": 18944, "num_hidden_layers": 4, "num_attention_heads": 28, "num_key_value_heads": 4,
    "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 2, "use_sliding_window": False,
    "rope_theta": 1000000.0, "eos_token_id": 151645,
}  # fmt: skip
MISTRAL = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 32768, "sliding_window": 4096, "rope_theta": 10000.0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def parse(base, *without, **changes) -> ModelConfig:
    return config_from_hf({k: v for k, v in {**base, **changes}.items() if k not in without}, "dir/config.json")


def refused(base, *without, **changes) -> str:
    with pytest.raises(CheckpointError) as caught:
        parse(base, *without, **changes)
    assert str(caught.value).startswith("dir/config.json: ")
    return str(caught.value)


def test_a_published_llama_file():
    assert parse(LLAMA) == ModelConfig(
        architecture="LlamaForCausalLM", vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_layers=16,
        num_heads=32, num_kv_heads=8, head_dim=64, max_position_embeddings=131072, rms_norm_eps=1e-5,
        rope=RopeConfig(
            kind="llama3", theta=500000.0, factor=32.0, original_max_position_embeddings=8192, low_freq_factor=1.0,
            high_freq_factor=4.0,
        ),
        tie_word_embeddings=True, eos_token_ids=(128001, 128008, 128009), bos_token_id=128000,
        sliding_window=(None,) * 16,
    )  # fmt: skip
    assert hash(parse(LLAMA)) == hash(parse(LLAMA))


def test_both_spellings_of_the_rope_settings_mean_the_same():
    newer = {**LLAMA["rope_scaling"], "rope_theta": 500000.0}
    assert parse(LLAMA, "rope_scaling", "rope_theta", rope_parameters=newer) == parse(LLAMA)
    assert parse(LLAMA, rope_parameters=newer) == parse(LLAMA)  # both, in agreement
    older = {**LLAMA["rope_scaling"], "type": "llama3"}
    del older["rope_type"]
    assert parse(LLAMA, rope_scaling=older) == parse(LLAMA)


def test_rope_kinds():
    assert parse(LLAMA, rope_scaling=None).rope == RopeConfig(theta=500000.0)
    assert parse(LLAMA, "rope_scaling", "rope_theta").rope == RopeConfig()
    linear = parse(LLAMA, rope_scaling={"type": "linear", "factor": 2}, max_position_embeddings=4096)
    assert (linear.rope.kind, linear.rope.factor, linear.context_length) == ("linear", 2.0, 8192)
    yarn = parse(QWEN2, rope_scaling=YARN)
    assert yarn.rope.attention_factor == pytest.approx(1.1386294)  # 0.1 ln 4 + 1
    assert yarn.context_length == 131072
    assert parse(QWEN2, rope_scaling={**YARN, "attention_factor": 1}).rope.attention_factor == 1.0
    short = {"rope_type": "yarn", "factor": 2.0}
    assert parse(QWEN2, rope_scaling=short).rope.original_max_position_embeddings == 32768
    assert parse(QWEN2, rope_scaling=short, original_max_position_embeddings=4096).context_length == 32768
    both = parse(QWEN2, rope_scaling={**YARN, "mscale": 0.707, "mscale_all_dim": 0.707})
    assert both.rope.attention_factor == 1.0


def test_defaults_are_those_of_the_architecture():
    llama = parse(LLAMA, "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "eos_token_id")
    assert (llama.num_kv_heads, llama.head_dim, llama.rms_norm_eps) == (32, 64, 1e-6)
    assert not llama.tie_word_embeddings
    assert llama.eos_token_ids == ()
    assert parse(MISTRAL, "sliding_window", "num_key_value_heads").sliding_window == (4096, 4096)
    assert parse(MISTRAL, sliding_window=None).sliding_window == (None, None)
    qwen3 = {**QWEN2, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    assert parse(qwen3).head_dim == 128
    assert (parse(qwen3).qk_norm, parse(qwen3).qkv_bias, parse(QWEN2).qkv_bias) == (True, False, True)


def test_qwen_windows():
    assert parse(QWEN2).sliding_window == (None,) * 4
    assert parse(QWEN2, use_sliding_window=True).sliding_window == (None, None, 4096, 4096)
    types = ["sliding_attention", "full_attention"] * 2
    assert parse(QWEN2, use_sliding_window=True, layer_types=types).sliding_window == (4096, None, 4096, None)
    assert "no window is in use" in refused(QWEN2, layer_types=types)
    assert "expected 4 entries" in refused(QWEN2, use_sliding_window=True, layer_types=types[:3])


def test_the_architecture_decides_and_must_agree_with_the_model_type():
    assert parse(LLAMA, "architectures") == parse(LLAMA)
    assert parse(LLAMA, "model_type") == parse(LLAMA)
    assert "contradict each other" in refused(LLAMA, model_type="mistral")
    for changes in ({"architectures": ["GPT2LMHeadModel"]}, {"architectures": None, "model_type": "gpt2"}):
        with pytest.raises(UnsupportedArchitecture, match=r"dir/config.json: .*(GPT2|gpt2).*LlamaForCausalLM, Mistral"):
            parse(LLAMA, **changes)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantized checkpoint .*'awq'.*unquantized"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'; supported: 'silu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_size": None}, "hidden_size is missing; expected a whole number"),
        ({"hidden_size": "big"}, "hidden_size is 'big'; expected a whole number"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": 0}, "hidden_size = 0 cannot work"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
        ({"num_key_value_heads": 5}, "num_heads = 32 is not a multiple of num_kv_heads = 5"),
        ({"head_dim": 63}, "head_dim = 63 is odd"),
        ({"head_dim": None, "num_attention_heads": 24}, "hidden_size 2048 is not a multiple .* 24"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; expected true or false"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"architectures": "LlamaForCausalLM"}, "a list of class names"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; supported: an object"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'; supported .*linear, llama3, yarn"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "'longrope'"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope type"),
        ({"rope_scaling": {"rope_type": "yarn", "type": "linear", "factor": 2.0}}, "given twice"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "at least 1"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "wobble": 3}}, "unknown rope settings .*wobble"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1}}, "high_freq_factor is missing"),
        ({"rope_scaling": {**LLAMA["rope_scaling"], "low_freq_factor": 4.0}}, "0 < low < high"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, "rope_theta is given twice"),
        ({"rope_parameters": {**YARN, "rope_theta": 500000.0}}, "given twice"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "'full_attention'.*one setting for all"),
        ({"rope_theta": 0, "rope_scaling": None}, "rope_theta is 0.0; expected a number above 1"),
        ({"rope_theta": float("nan"), "rope_scaling": None}, "rope_theta is nan"),
        ({"rope_scaling": {"rope_type": "linear", "factor": float("inf")}}, "rope factor inf"),
        ({"text_config": {"hidden_size": 2048}, "hidden_size": None}, "text_config.*models of text alone"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_is_wrong_or_not_supported_is_said(changes, found):
    with pytest.raises(CheckpointError, match=f"^dir/config.json: .*{found}"):
        parse(LLAMA, **changes)


@pytest.mark.parametrize("types", [5, "full_attention", [["full_attention"]], [None]], ids=str)
@pytest.mark.parametrize("base", [MISTRAL, QWEN2], ids=["mistral", "qwen2"])
def test_layer_types_that_are_no_names(base, types):
    assert "layer_types" in refused(base, layer_types=types)


def test_mistral_with_layers_of_several_kinds_is_refused():
    assert "on every layer" in refused(MISTRAL, layer_types=["full_attention", "sliding_attention"])


def test_a_configuration_written_by_hand_is_checked():
    sizes = dict(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4,
        max_position_embeddings=16,
    )  # fmt: skip
    assert ModelConfig(architecture="LlamaForCausalLM", **sizes).sliding_window == (None, None)
    with pytest.raises(ConfigError, match="one entry for each of the 2 layers"):
        ModelConfig(architecture="LlamaForCausalLM", **sizes, sliding_window=(4,))
    with pytest.raises(UnsupportedArchitecture, match="Nothing"):
        model_for(ModelConfig(architecture="Nothing", **sizes))
