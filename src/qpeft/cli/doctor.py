"""`qpeft doctor`: versions, hardware, and missing extras of this installation."""

from __future__ import annotations

import json
import re
from importlib import metadata

from qpeft.cli.common import AsJson, HelpPanel, app, examples, print_table


@app.command(rich_help_panel=HelpPanel.METHODS, epilog=examples("qpeft doctor"))
def doctor(as_json: AsJson = False) -> None:
    """Show versions, hardware and installed extras."""
    from qpeft.circuits.simulator.c_engine import library
    from qpeft.platforms import support
    from qpeft.training import environment

    machine = environment.machine()
    bfloat16, words = environment.bfloat16_instructions(), {"none": "no", "slow": "slow"}
    found = {
        **environment.versions(),
        "operating system": support(),
        "processor": f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads in use",
        "memory": f"{machine['memory_bytes'] / 2**30:.1f} GiB",
        "accelerators": ", ".join(machine["gpus"]) or "none",
        "circuits on the CPU": library.describe(),
        "bfloat16 on the CPU": "fast" if bfloat16 == "fast" else f"{words[bfloat16]} instructions: products in float32",
    }
    extras = _extras()
    if as_json:
        print(json.dumps({**found, "extras": extras}))
        return
    missing = [f'{name}: pip install "qpeft[{name}]"' for name, there in extras.items() if not there]
    found["extras installed"] = ", ".join(name for name, there in extras.items() if there) or "none"
    print_table(("", "in use"), list(found.items()))
    if missing:
        print("not installed:\n  " + "\n  ".join(missing))


def _extras() -> dict[str, bool]:
    """Each extra of the package and whether all it names is installed."""
    needed: dict[str, list[str]] = {name: [] for name in metadata.metadata("qpeft").get_all("Provides-Extra") or []}
    for requirement in metadata.requires("qpeft") or []:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+).*extra == ['\"]([a-z0-9-]+)['\"].*", requirement)
        if match and match[2] in needed:
            needed[match[2]].append(match[1])

    def installed(package: str) -> bool:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            return False
        return True

    return {name: all(map(installed, packages)) for name, packages in needed.items() if name not in ("dev", "bench")}
