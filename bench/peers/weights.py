"""The Llama of `shared/workload.py` with random weights as a Hugging Face directory, for the peers that read one."""

from pathlib import Path

from bench.shared.workload import LLAMA_32M


def hugging_face(folder: Path) -> Path:
    """`folder`/hf, written once in float32; needs torch and transformers."""
    model = folder / "hf"
    if (model / "model.safetensors").is_file():
        return model
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shapes = {name: value for name, value in LLAMA_32M.items() if name != "architectures"}
    LlamaForCausalLM(LlamaConfig(**shapes)).float().eval().save_pretrained(model)
    return model
