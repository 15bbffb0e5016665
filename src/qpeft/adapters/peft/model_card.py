"""The model card of a saved adapter: what to install and to import, for a reader who has never heard of qpeft."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

import qpeft
from qpeft.files import atomic_write

FILE = "README.md"
_START, _END = "<!-- qpeft: how to load -->", "<!-- qpeft: end -->"
_SECTION = """{start}
## How to load this adapter

A `{method}` adapter of the package `qpeft`, saved with version {version}. PEFT alone does not know this type, and fails on
`peft_type: {method}` in `adapter_config.json`. Install qpeft and import it before the adapter is loaded:

```sh
pip install "qpeft>={version}"
```

```python
import qpeft  # makes {method} known to PEFT
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("THIS_FOLDER")
```

Programs that import no qpeft, such as a Trainer's command line: `qpeft exec CMD`, or `QPEFT_AUTOLOAD=1` in the environment.
Programs without qpeft: convert the run first with `qpeft export`.
{end}
"""


def write(folder: str | os.PathLike[str], method: str) -> None:
    """Write or update the section of qpeft in a folder's `README.md`, next to what PEFT and others wrote there.

    Args:
        folder: the adapter's folder.
        method: name of the method.
    """
    path = Path(folder) / FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    try:
        card = ModelCard(text if text.startswith("---\n") else f"---\n---\n{text}")
    except (ValueError, yaml.YAMLError):  # a head that is none must not keep an adapter from being saved
        card = ModelCard(f"---\n---\n\n{text}")
    data = card.data
    assert isinstance(data, ModelCardData)
    data.library_name = data.library_name or "peft"
    data.tags = sorted({*(data.tags or []), "qpeft", method.lower()})
    section = _SECTION.format(start=_START, end=_END, method=method, version=qpeft.__version__)
    rest = re.sub(f"{_START}.*?{_END}\n*", "", card.text, flags=re.DOTALL)
    card.text = f"\n{section}\n{rest.lstrip()}"
    atomic_write(path, str(card))
