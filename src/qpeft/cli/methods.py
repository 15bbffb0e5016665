"""Commands about adapter methods: what they are, what they cost, ways out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from qpeft.cli.common import AsJson, app, print_table


@app.command()
def params(
    model: Annotated[str, typer.Argument(help="Hub id, folder (its config.json is enough) or package:NAME.")],
    method: Annotated[str, typer.Option(help="A method of qpeft or of PEFT.")] = "qtha",
    rank: Annotated[int | None, typer.Option(min=1, help="Rank r; default the method's own.")] = None,
    target_modules: Annotated[
        str | None, typer.Option(help="Comma-separated names, or all-linear; default PEFT's for the model.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the adapter, such as bond_dim=4.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count a method's trainable parameters on a model, beside LoRA's of equal rank, without the model's weights."""
    from qpeft.adapters.peft import count_parameters
    from qpeft.training.adapter_section import build_adapter_config
    from qpeft.training.config import ModelSection
    from qpeft.training.models import empty_model
    from qpeft.training.yaml_source import read_settings

    fields: dict[str, Any] = {"peft_type": method, **read_settings(settings or (), "adapter")}
    if rank is not None:
        fields["r"] = rank
    if target_modules:
        fields["target_modules"] = target_modules if target_modules == "all-linear" else target_modules.split(",")
    path = Path(model)
    name = str(path.parent) if path.name == "config.json" and path.is_file() else model
    config = build_adapter_config(fields)
    counts = count_parameters(empty_model(ModelSection(model_name_or_path=name)), config)
    share = counts["trainable"] / counts["lora"] if counts["lora"] else None
    result = {
        "model": model,
        "method": str(config.peft_type.value),
        "rank": getattr(config, "r", None),
        **counts,
        "share_of_lora": share,
        "share_of_base": counts["trainable"] / counts["base"],
    }
    if as_json:
        print(json.dumps(result))
        return
    rows = [
        (f"{result['method']}" + (f", r = {result['rank']}" if result["rank"] else ""), f"{counts['trainable']:,}"),
        ("LoRA of equal rank", f"{counts['lora']:,}" if counts["lora"] else "-"),
        ("share of LoRA", f"{share:.1%}" if share is not None else "-"),
        ("base model", f"{counts['base']:,}"),
        ("share of base", f"{result['share_of_base']:.4%}"),
    ]
    print_table(("", "trainable parameters"), rows)
