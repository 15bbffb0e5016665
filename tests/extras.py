"""Each extra installs alone and is enough for its parts: `python tests/extras.py --install [NAME ...]`.

A base environment gets a wheel of qpeft without extras. Each extra then gets an environment of its own that sees the base (torch is
installed once), and the modules that need the extra are imported there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# what an extra is for -> a script that needs it
NEEDS = {
    "train": "import datasets, tensorboard",
    "trl": "import trl",
    "reporters": "import wandb, trackio",
    "report": "from qpeft.report import page; import matplotlib, jinja2, scipy",
    "qasm": "from qpeft import Circuit; Circuit.from_qasm('OPENQASM 3.0; include \"stdgates.inc\"; qubit[2] q; h q[0];')",
    "qiskit": "from qpeft import Circuit, Op; Circuit(1, (Op('h', (0,)),)).to_qiskit()",
    "pennylane": "from qpeft import Circuit, Op; Circuit(1, (Op('h', (0,)),)).to_pennylane()",
    "aer": "from qpeft.backends.registry import get_backend; get_backend('qiskit:aer')",
    "pyqpanda": "from qpeft.backends.registry import get_backend; get_backend('pyqpanda:CPUQVM')",
    "keyring": "import keyring",
    "service": "import qpeft.service.app, qpeft.service.client, qpeft.service.server",
    "applications": "import qpeft.applications.scoring.evaluate_task, openpyxl",
    "serve": "import qpeft.applications.serving.server",
    "quantization": "import bitsandbytes",
    "ui": "import qpeft.ui.server",
    "demo": "import datasets, matplotlib, gguf",
}
# extras that are checked elsewhere, or need what this script does not install
ELSEWHERE = {
    "smollm2": "compiles llama.cpp for minutes; make demo takes the weights without their dependencies",
    "dev": "make test",
    "docs": "make docs",
    "bench": "python -m benchmarks.circuits",
    "ray": "large",
    "deepspeed": "make test-peers",
    "eval": "large",
    "qbraid": "large",
}


def environment(folder: Path, base: Path | None, *packages: str) -> Path:
    """A new environment with packages, which sees the packages of `base`; its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    site = next((folder / "lib").glob("python*/site-packages"))
    if base is not None:
        (site / "base.pth").write_text(str(next((base / "lib").glob("python*/site-packages"))))
    subprocess.run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True, cwd=ROOT)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--install", nargs="*", metavar="NAME", required=True, help="extras; default all of NEEDS")
    names = parser.parse_args().install or list(NEEDS)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, "."], check=True, cwd=ROOT)
        (wheel,) = Path(folder).glob("*.whl")
        environment(base, None, str(wheel))
        for name in names:
            python = environment(Path(folder) / name, base, f"{wheel}[{name}]")
            done = subprocess.run([str(python), "-c", NEEDS[name]], capture_output=True, text=True, cwd=folder)
            print(f"{'ok' if done.returncode == 0 else 'FAILED'}: {name}", done.stderr[-500:], flush=True)
            failed += [name] if done.returncode else []
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
