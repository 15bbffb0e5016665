"""Check of an installed wheel or sdist: `python tests/installed.py [--engine c|torch]`, in an environment with nothing but qpeft.

It needs no test framework, network or weights. It prints one line per check and exits with 1 at the first failure.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path


def from_an_installation() -> None:
    import qpeft

    folder = Path(qpeft.__file__).parent
    assert "site-packages" in str(folder), f"imported from {folder}, not from an installation"
    assert qpeft.__version__ == metadata.version("qpeft")


def commands_start() -> None:
    for arguments in (["--version"], ["--help"], ["methods"], ["devices"], ["doctor"]):
        done = subprocess.run([sys.executable, "-m", "qpeft.cli", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, f"qpeft {' '.join(arguments)}: {done.stderr}"


def extras_are_named() -> None:
    """A command that needs an extra fails with the pip command; --help of every command works without any extra."""
    from typer.main import get_command

    from qpeft.cli import app

    names = list(get_command(app).commands)  # type: ignore[attr-defined]
    for name in names:
        done = subprocess.run([sys.executable, "-m", "qpeft.cli", name, "--help"], capture_output=True, text=True)
        assert done.returncode == 0, f"qpeft {name} --help: {done.stderr}"


def circuits_are_right(engine: str | None) -> None:
    import numpy as np
    import torch

    from qpeft import expectations
    from qpeft.circuits import ansatz
    from qpeft.circuits.simulator.c_engine import library

    if engine is not None:
        assert library.available() == (engine == "c"), library.describe()
    circuit = ansatz.qtha(3, 2)
    generator = np.random.default_rng(0)
    inputs, angles = generator.normal(size=(5, circuit.n_inputs)), generator.normal(size=circuit.n_angles)
    found = expectations(circuit, torch.tensor(inputs), torch.tensor(angles)).numpy()
    signs = 1 - 2 * (np.arange(8)[:, None] >> np.array([2, 1, 0]) & 1)
    for row, values in zip(inputs, found, strict=True):
        state = circuit.statevector([*row, *angles]).numpy()
        assert np.allclose(np.abs(state) ** 2 @ signs, values, atol=1e-10)
    x, a = (torch.tensor(v, requires_grad=True) for v in (inputs, angles))
    assert torch.autograd.gradcheck(lambda x, a: expectations(circuit, x, a), (x, a))


def a_model_trains_saves_and_loads() -> None:
    import torch
    from peft import PeftModel, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    import qpeft

    settings = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )

    def base() -> LlamaForCausalLM:
        torch.manual_seed(0)
        return LlamaForCausalLM(settings)

    config = qpeft.QTHAConfig(
        r=3, n_layers=1, hidden_size=8, bond_dim=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(base(), config)
    tokens = torch.randint(0, 64, (2, 16))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0], losses
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        again = PeftModel.from_pretrained(base(), folder).eval()
        assert torch.equal(model.eval()(tokens).logits, again(tokens).logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=("c", "torch"), help="the engine that must be there")
    options = parser.parse_args()
    checks = (
        from_an_installation,
        commands_start,
        extras_are_named,
        lambda: circuits_are_right(options.engine),
        a_model_trains_saves_and_loads,
    )
    for check, name in zip(checks, ("an installation", "commands", "--help", "circuits", "a model"), strict=True):
        check()
        print(f"ok: {name}", flush=True)
    print(
        "python",
        sys.version.split()[0],
        *(f"{name} {metadata.version(name)}" for name in ("qpeft", "torch", "transformers", "peft")),
    )


if __name__ == "__main__":
    main()
