"""LoRA factors as a GGUF adapter file, which llama.cpp loads with a GGUF base model (`--lora`).

The format: `general.type` "adapter", `adapter.type` "lora", `adapter.lora.alpha`, and for each base tensor T a pair
`T.lora_a (rank, d_in)` and `T.lora_b (d_out, rank)`, applied as `alpha / rank * lora_b lora_a`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qpeft.adapters.low_rank import LowRank
from qpeft.errors import AdapterError, MissingDependencyError

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "phi3": "phi3",
    "gpt2": "gpt2",
}
"""transformers' model_type -> llama.cpp's architecture, for those whose linear layers keep their rows or are in `INTERLEAVED`."""

INTERLEAVED = {"llama": ("num_attention_heads", "num_key_value_heads")}
"""Architectures whose rotary embedding pairs neighbouring rows: the rows of q_proj and k_proj are reordered in a GGUF."""


def write_gguf_lora(file: Path, factors: Mapping[str, LowRank], config: Any) -> None:
    """Write a LoRA's factors in float32, and read them back.

    Args:
        file: file to write.
        factors: the factors by the module's name in transformers.
        config: the base model's transformers config.

    Raises:
        AdapterError: an architecture, module or constant (bias) that the format or this writer has no place for.
        MissingDependencyError: without the package gguf.
    """
    import torch

    names = gguf_names(factors, config)
    gguf = _gguf()
    tensors = _tensors(factors, names, config)
    alpha = float(max(low.rank for low in factors.values()))
    writer = gguf.GGUFWriter(str(file), ARCHITECTURES[config.model_type])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for name, (up, down) in tensors.items():
        scaled = up * (down.shape[0] / alpha)  # one alpha for all ranks
        writer.add_tensor(f"{name}.lora_a", down.contiguous().cpu().numpy())
        writer.add_tensor(f"{name}.lora_b", scaled.contiguous().cpu().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    read = {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(file).tensors}
    if read.keys() != {f"{name}.lora_{part}" for name in tensors for part in "ab"} or not all(
        torch.equal(read[f"{name}.lora_a"], down.cpu()) for name, (_, down) in tensors.items()
    ):
        raise AdapterError("the GGUF file does not read back as it was written", value=str(file))


def gguf_names(modules: Iterable[str], config: Any) -> dict[str, str]:
    """The names that llama.cpp gives to the weights of modules.

    Args:
        modules: the modules' names in transformers.
        config: the base model's transformers config.

    Returns:
        GGUF name by module.

    Raises:
        AdapterError: an architecture or module that the format or this writer has no place for.
    """
    gguf = _gguf()
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise AdapterError(
            "no GGUF adapter for this architecture",
            value=kind,
            bound=", ".join(ARCHITECTURES),
            hint="export --to lora and convert it with llama.cpp's convert_lora_to_gguf.py",
        )
    number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == ARCHITECTURES[kind])
    known = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    found = {}
    for module in modules:
        name = known.get_name(module)
        if name is None or (name == "output" and config.tie_word_embeddings):
            why = "tied to the embedding" if name else "unknown to llama.cpp"
            raise AdapterError(f"a GGUF adapter has no place for this module: it is {why}", value=module, hint="leave it out")
        found[module] = f"{name}.weight"
    return found


def _tensors(factors: Mapping[str, LowRank], names: Mapping[str, str], config: Any) -> dict[str, tuple[Any, Any]]:
    """`(up, down)` by GGUF tensor name, rows in llama.cpp's order."""
    found = {}
    for module, low in factors.items():
        if low.bias is not None:
            raise AdapterError("a GGUF adapter holds no constants", value=module, hint="export without --lora-bias")
        up = low.up
        for projection, heads in zip(("q_proj", "k_proj"), INTERLEAVED.get(ARCHITECTURES[config.model_type], ()), strict=False):
            if module.endswith(projection):
                up = up[interleaved(len(up), getattr(config, heads))]
        found[names[module]] = (up, low.down)
    return found


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingDependencyError("gguf", "demo", "a GGUF adapter") from error
    return gguf


def interleaved(rows: int, heads: int) -> Any:
    """Where llama.cpp's rows come from: in each head, row i of the first half is followed by row i of the second.

    Args:
        rows: rows of the matrix.
        heads: number of attention heads.
    """
    import torch

    return torch.arange(rows).reshape(heads, 2, -1).transpose(1, 2).flatten()
