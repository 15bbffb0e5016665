"""A recipe: one YAML file that says which model, adapter, data and training arguments make a run, or a comparison of runs."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from qpeft.backends.registry import BACKENDS, known_names
from qpeft.backends.spending.budget import Budget, Price
from qpeft.circuits.surrogate import SurrogateKind
from qpeft.errors import ConfigError, PluginError, QpeftError
from qpeft.plugins import load_plugins
from qpeft.training.data.files import READERS
from qpeft.training.recipe.adapter_section import embed_circuit, read_adapter
from qpeft.training.recipe.training_section import Count, Positive, Seed, TrainingSection, unknown_names
from qpeft.training.recipe.validation import Problem, Section, explain, unknown_value
from qpeft.training.recipe.yaml_source import KeyPath, RecipeSource, dump_yaml, read_yaml

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_PACKAGE = re.compile(r"package:[A-Za-z0-9][\w.-]*")


def _names_a_method(fields: dict[str, Any]) -> dict[str, Any]:
    peft_type = fields.get("peft_type")
    if not isinstance(peft_type, str):
        got = "missing" if peft_type is None else f"got {json.dumps(peft_type)}"
        problem = Problem(("peft_type",), got, "the name of a PEFT method, for example QTHA or LORA")
        raise PydanticCustomError("inconsistent", "no method", {"problems": [problem]})
    return fields


Label = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$", description="one line of text")]
AdapterFields = Annotated[dict[str, Any], AfterValidator(_names_a_method)]


class ModelSection(Section):
    """Arguments of `from_pretrained`. `package:NAME` is a model that ships inside an installed Python package.

    `compute_dtype` is that of the base model's matrix products: the model's own ("native"), float32 for weights of 16 bits, widened
    block by block (fp32_matmul.py), or by "auto" the latter on processors where it is faster, as those with no instructions for
    bfloat16 or slow ones. `quantization` loads the base weights in 4 bits (NF4) or 8 bits with bitsandbytes, on a GPU or a CPU.
    """

    model_name_or_path: Annotated[str, Field(min_length=1, description="a hub id, a folder or package:NAME")]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compute_dtype: Literal["auto", "float32", "native"] = "auto"
    quantization: Literal["4bit", "8bit"] | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None


class DataSection(Section):
    """Where rows come from and what becomes of them.

    `train` and `eval` are files (an absolute path once loaded) or dataset ids of the hub, there with a subset `name` and the
    splits `train_split` and `eval_split`. `eval_size` rows are split off `train` instead, chosen by `split_seed` alone, so
    that every arm and seed is judged on the same rows. `max_length` counts tokens. `system` precedes conversations that
    have no system message of their own. `streaming` reads training rows while training goes on, for JSON Lines and hub data sets
    larger than memory; it needs `training.max_steps`, and rows are shuffled within a buffer.
    """

    train: Annotated[str, Field(min_length=1, description="a data file or the id of a dataset on the hub")]
    eval: Annotated[str, Field(min_length=1)] | None = None
    eval_size: Count | None = None
    split_seed: Seed = 0
    train_split: str = "train"
    eval_split: str = "test"
    name: str | None = None
    format: Literal["auto", "messages", "prompt_completion", "alpaca", "sharegpt", "text"] = "auto"
    max_length: Annotated[int, Field(ge=2)] = 1024
    max_train_rows: Count | None = None
    max_eval_rows: Count | None = None
    system: str | None = None
    streaming: bool = False

    def inconsistencies(self) -> Iterable[Problem]:
        """`eval` and `eval_size` exclude each other; streamed rows cannot be split."""
        if self.streaming and self.eval_size is not None:
            yield Problem(("eval_size",), "streamed rows cannot be split", "data.eval, a file of its own")
        if self.streaming and Path(self.train).suffix.lower() in READERS and Path(self.train).suffix.lower() != ".jsonl":
            yield Problem(("streaming",), f"{Path(self.train).suffix} files are not streamed", "JSON Lines, or a hub data set")
        if self.eval is not None and self.eval_size is not None:
            yield Problem(("eval_size",), "given together with eval", "one of the two")


class PriceSection(Section):
    """What the vendor of the backend charges for each circuit, shot, job and second of chip time, in `currency`."""

    circuit: Annotated[float, Field(ge=0)] = 0.0
    shot: Annotated[float, Field(ge=0)] = 0.0
    job: Annotated[float, Field(ge=0)] = 0.0
    second: Annotated[float, Field(ge=0)] = 0.0
    currency: Annotated[str, Field(max_length=16)] = ""


class BudgetSection(Section):
    """The most that a run may spend on its backend, over all its sessions; null is no bound. `seconds` are of chip time, `money`
    follows from `price`."""

    circuits: Count | None = None
    shots: Count | None = None
    jobs: Count | None = None
    seconds: Positive | None = None
    money: Positive | None = None
    price: PriceSection | None = None

    def inconsistencies(self) -> Iterable[Problem]:
        """Money without a price bounds nothing."""
        if self.money is not None and self.price is None:
            yield Problem(("money",), "a bound on money needs the vendor's prices", "price: {shot: 0.001, currency: EUR}")

    def bounds(self) -> Budget:
        """The budget as backends check it."""
        values = self.model_dump(exclude={"price"})
        return Budget(**values, price=None if self.price is None else Price(**self.price.model_dump()))


def current_gradient(value: Any) -> Any:
    """A gradient's name of today: recipes and runs of version 0.1 say `lattice` for `surrogate`."""
    return value.replace("lattice-", "surrogate-") if isinstance(value, str) else value


class BackendSection(Section):
    """Where the adapter's circuits run while it trains; without this section, on the exact simulator.

    `shots` null asks for exact probabilities, noise included. `gradient`: through a surrogate, whose points alone run, with
    parameter shift or SPSA; direct, every token a circuit; or by autograd through the emulator (noise-aware training). "auto"
    takes what `qpeft plan` chooses. `surrogate`: the Fourier grid, which is exact, a sparse series or tensor train of root mean
    square error `surrogate_error`, or the smaller of grid and sparse series ("auto"). `pack` runs as many circuits at once as an
    emulated chip has room for. `cache` keeps results in the run's folder, so that a step that is trained again after a crash is
    not run again. Every `recalibrate` steps the backend is opened anew: its calibration is read and the circuits are placed again.
    """

    name: Annotated[str, Field(min_length=1, description="a backend, such as emulator:wukong-72")]
    shots: Count | None = 1000
    gradient: Annotated[
        Literal["auto", "surrogate-shift", "surrogate-spsa", "direct-shift", "direct-spsa", "emulator-autograd"],
        BeforeValidator(current_gradient),
    ] = "surrogate-shift"
    surrogate: SurrogateKind = "auto"
    surrogate_error: Annotated[float, Field(gt=0, lt=1)] = 0.05
    seed: Seed = 0
    pack: bool = False
    cache: bool = False
    recalibrate: Count | None = None
    budget: BudgetSection = BudgetSection()

    def inconsistencies(self) -> Iterable[Problem]:
        """Problems of keys that only emulators support."""
        emulator = self.name.startswith("emulator:")
        if self.pack and not emulator:
            yield Problem(("pack",), "only emulators pack circuits here", "an emulator, or false")
        if self.gradient == "emulator-autograd" and not (emulator and self.shots is None and not self.pack):
            yield Problem(("gradient",), "emulator-autograd is exact", "name: emulator:CHIP, shots: null and pack: false")
        for name, idle in (("cache", False), ("budget", BudgetSection())):
            if self.gradient == "emulator-autograd" and getattr(self, name) != idle:
                yield Problem((name,), "emulator-autograd runs no circuits that could be kept or paid for", "another gradient")


class Arm(Section):
    """One method of a comparison: its adapter, and training arguments that differ from the recipe's."""

    label: Label
    adapter: AdapterFields
    training: dict[str, Any] = Field(default_factory=dict)


class CompareSection(Section):
    """Arms x seeds: each arm is trained once for every seed."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    arms: Annotated[tuple[Arm, ...], Field(min_length=1, description="a list of arms, each with label and adapter")]

    def inconsistencies(self) -> Iterable[Problem]:
        """Labels and seeds are unique: they name the runs."""
        for name, values in (("seeds", self.seeds), ("arms", tuple(arm.label for arm in self.arms))):
            for index, value in enumerate(values):
                if value in values[:index]:
                    path: KeyPath = (name, index, "label") if name == "arms" else (name, index)
                    yield Problem(path, f"{json.dumps(value)} appears twice", "each once")


class RunConfig(Section):
    """A recipe, complete and checked. `label` is the display name of a single run, by default the name of its method. `init_from`
    is the `adapter/` of a run with the same adapter section, whose weights training starts from. `plugins` are Python files and
    modules to import first, which register what the recipe names (qpeft.plugins); they run only where the user allows it."""

    name: Label
    label: Label | None = None
    plugins: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    model: ModelSection
    adapter: AdapterFields | None = None
    init_from: Annotated[str, Field(min_length=1)] | None = None
    data: DataSection
    training: TrainingSection = TrainingSection()
    backend: BackendSection | None = None
    compare: CompareSection | None = None

    def inconsistencies(self) -> Iterable[Problem]:
        """Problems between sections."""
        if self.adapter is None and self.compare is None:
            yield Problem(("adapter",), "missing", "an adapter section, or compare with arms")
        if self.data.streaming and self.backend is not None:
            yield Problem(("data", "streaming"), "a backend's work is planned from all rows", "false, or no backend section")
        held_out = self.data.eval is not None or self.data.eval_size is not None
        for path, training, given in self._trainings():
            if isinstance(training, ValidationError):
                yield from explain(training, TrainingSection, path)
                continue
            if self.data.streaming and training.max_steps is None:
                yield Problem((*path, "max_steps"), "missing", "a number of steps: a stream has no length")
            if training.packing and self.backend is not None:
                yield Problem((*path, "packing"), "a backend's work is planned row by row", "false, or no backend section")
            if training.share_prefixes is True and self.backend is not None:
                yield Problem((*path, "share_prefixes"), "a backend's work is planned row by row", "false, or no backend section")
            if not held_out:
                for name, idle in (("eval_strategy", "no"), ("eval_on_start", False)):
                    if name in given and getattr(training, name) != idle:
                        yield Problem((*path, name), "there are no rows to evaluate on", "data.eval or data.eval_size")
        for index, arm in enumerate(self.compare.arms if self.compare else ()):
            for name in ("seed", "data_seed"):
                if name in arm.training:
                    yield Problem(
                        ("compare", "arms", index, "training", name), "fixed by an arm", "compare.seeds, the same for every arm"
                    )

    def _trainings(self) -> Iterable[tuple[KeyPath, TrainingSection | ValidationError, Collection[str]]]:
        """(path, section, the fields it sets itself): the recipe's training section, and that of every arm that has its own."""
        yield ("training",), self.training, TrainingSection.model_fields
        for index, arm in enumerate(self.compare.arms if self.compare else ()):
            if arm.training:
                values = {**self.training.model_dump(mode="json"), **arm.training}
                section: TrainingSection | ValidationError
                try:
                    section = TrainingSection.model_validate_json(json.dumps(values))
                except ValidationError as error:
                    section = error
                yield ("compare", "arms", index, "training"), section, arm.training

    def arm_config(self, arm: Arm, seed: int) -> RunConfig:
        """The single run of one arm and one seed; `seed` fixes initialisation and the order of the data alike for all arms."""
        training = {**self.training.model_dump(mode="json"), **arm.training, "seed": seed, "data_seed": seed}
        return RunConfig.from_resolved(
            {**self.resolved(), "label": arm.label, "adapter": arm.adapter, "training": training, "compare": None}
        )

    @property
    def shares_in_evaluation(self) -> bool:
        """Whether held-out rows may share prefixes: not where a backend's work is planned row by row."""
        return self.training.share_prefixes is not False and self.backend is None

    def resolved(self) -> dict[str, Any]:
        """Every field with its value, fit for JSON; `from_resolved` of it is an equal RunConfig."""
        return self.model_dump(mode="json")

    def without_budget(self) -> RunConfig:
        """The recipe as far as it decides the result: a run may go on with a larger budget."""
        if self.backend is None:
            return self
        return self.model_copy(update={"backend": self.backend.model_copy(update={"budget": BudgetSection()})})

    def to_yaml(self) -> str:
        """A recipe file that `load_recipe` reads as an equal RunConfig, as long as the data files stay where they are."""
        return dump_yaml(self.resolved())

    @classmethod
    def from_resolved(cls, values: Mapping[str, Any]) -> RunConfig:
        """From plain values; adapter fields are not checked against their method. Raises ConfigError."""
        try:
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            raise ConfigError.collect([RecipeSource("").problem(*problem) for problem in explain(error, cls)]) from error


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a recipe; `overrides` are `dotted.path=value` with a YAML value, applied in order.

    A section with nothing below it means its defaults. Files are looked up next to the recipe, then in the working folder,
    and become absolute paths. Every problem found is in
    the one ConfigError raised, sorted by line: those of names that peft and transformers know among them.
    """
    source = read_yaml(path, overrides)
    if not isinstance(source.value, dict):
        what = "the file is empty" if source.value is None else "the top level is not a mapping"
        raise source.problem((), what, f"sections {', '.join(RunConfig.model_fields)}")
    values = {"name": Path(path).stem, **source.value}
    values |= {name: {} for name in ("model", "data", "training") if name in values and values[name] is None}
    problems = list(source.problems)
    problems += [source.problem(*problem) for problem in _locate(values, Path(path).parent)]
    problems += [source.problem(*problem) for problem in _plugin_problems(values.get("plugins"))]
    problems += [source.problem(*problem) for problem in _embed_circuits(values, (Path(path).parent, Path.cwd()))]
    config = None
    try:
        config = RunConfig.model_validate_json(json.dumps(values))
    except ValidationError as error:
        taken = {problem.field for problem in problems}
        found = [*explain(error, RunConfig), *_hidden_problems(values, error)]
        problems += [said for problem in found if (said := source.problem(*problem)).field not in taken]
    problems += [source.problem(*problem) for problem in _foreign_problems(values)]
    if problems or config is None:
        raise ConfigError.collect(sorted(problems, key=lambda problem: (problem.line == 0, problem.line)))
    return config


def _hidden_problems(values: Mapping[str, Any], error: ValidationError) -> list[Problem]:
    """Values that exclude each other in a section that has other errors, where pydantic does not look for them."""
    rest, known = copy.deepcopy(dict(values)), error.errors(include_url=False)
    for detail in known:
        holder: Any = rest
        *path, last = detail["loc"] or ("",)
        for key in path:
            holder = holder[key] if isinstance(holder, dict) and key in holder else None
        if detail["type"] != "inconsistent" and isinstance(holder, dict):
            holder.pop(last, None)
    try:
        RunConfig.model_validate_json(json.dumps(rest))
    except ValidationError as second:
        return [
            problem._replace(path=(*detail["loc"], *problem.path))
            for detail in second.errors(include_url=False)
            if detail["type"] == "inconsistent" and all(detail["loc"] != other["loc"] for other in known)
            for problem in detail["ctx"]["problems"]
        ]
    return []


def _embed_circuits(values: dict[str, Any], folders: Sequence[Path]) -> Iterable[Problem]:
    """Replace circuit files in adapter sections by the circuits, in place."""
    compare = values.get("compare")
    arms = compare.get("arms") if isinstance(compare, dict) else None
    holders: list[tuple[KeyPath, Any]] = [((), values)]
    holders += [(("compare", "arms", i), arm) for i, arm in enumerate(arms if isinstance(arms, list) else ())]
    for path, holder in holders:
        if isinstance(holder, dict) and isinstance(holder.get("adapter"), dict):
            try:
                holder["adapter"] = embed_circuit(holder["adapter"], folders)
            except QpeftError as error:
                yield Problem((*path, "adapter", "circuit"), str(error))


def _plugin_problems(plugins: Any) -> Iterable[Problem]:
    """Import the recipe's plug-ins, in order, up to the first that fails."""
    for index, plugin in enumerate(plugins if isinstance(plugins, list) else ()):
        try:
            load_plugins([plugin] if isinstance(plugin, str) else ())
        except PluginError as error:
            yield Problem(("plugins", index), str(error))
            return


def _foreign_problems(values: Mapping[str, Any]) -> Iterable[Problem]:
    """Problems that only the installed peft and transformers, and the known backends, can tell; of what has the right type."""
    backend = _section(values, "backend").get("name")
    if isinstance(backend, str) and backend and backend.partition(":")[0] not in BACKENDS:
        yield unknown_value(("backend", "name"), backend, known_names())
    listed = _section(values, "compare").get("arms")
    arms = listed if isinstance(listed, list) else []
    places: list[tuple[KeyPath, Mapping[str, Any]]] = [((), values)]
    places += [(("compare", "arms", index), arm) for index, arm in enumerate(arms) if isinstance(arm, dict)]
    for path, holder in places:
        for problem in unknown_names(_section(holder, "training")):
            yield problem._replace(path=(*path, "training", *problem.path))
        fields = _section(holder, "adapter")
        if isinstance(fields.get("peft_type"), str):
            for problem in read_adapter(fields)[1]:
                yield problem._replace(path=(*path, "adapter", *problem.path))


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The section as it stands in the file; empty where it is none."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _locate(values: dict[str, Any], folder: Path) -> Iterable[Problem]:
    """Make the paths in `values` absolute, in place; yields a problem for each that is neither there nor a possible hub id."""
    if isinstance(start := values.get("init_from"), str) and start:
        found = _first_existing(start, (folder, Path.cwd()))
        if found is None or not (found / "adapter_config.json").is_file():
            yield Problem(("init_from",), f"no adapter here: {start!r}", "a folder with adapter_config.json")
        else:
            values["init_from"] = str(found)
    plugins = listed if isinstance(listed := values.get("plugins"), list) else []
    for index, plugin in enumerate(plugins):
        if isinstance(plugin, str) and plugin.endswith(".py") and (found := _first_existing(plugin, (folder, Path.cwd()))):
            plugins[index] = str(found)
    backend = values.get("backend")
    kind, _, chip = str(backend.get("name")).partition(":") if isinstance(backend, dict) else ("", "", "")
    if isinstance(backend, dict) and kind == "emulator" and chip.endswith(".json"):
        found = _first_existing(chip, (folder, Path.cwd()))
        if found is None or not found.is_file():
            yield Problem(("backend", "name"), f"no such file: {chip!r}", "a chip file next to the recipe or in the working folder")
        else:
            backend["name"] = f"emulator:{found}"
    for section, key in (("model", "model_name_or_path"), ("data", "train"), ("data", "eval")):
        inner = values.get(section)
        text = inner.get(key) if isinstance(inner, dict) else None
        if (
            not isinstance(inner, dict)
            or not isinstance(text, str)
            or not text
            or (section == "model" and _PACKAGE.fullmatch(text))
        ):
            continue
        kind = "a folder" if section == "model" else "a file"
        found = _first_existing(text, (folder, Path.cwd()))
        if found is not None:
            inner[key] = str(found)
            if found.is_dir() != (section == "model"):
                yield Problem((section, key), f"{text!r} is not {kind}", kind)
        elif not _HUB_ID.fullmatch(text) or Path(text).suffix.lower() in READERS:
            looked = " and ".join(dict.fromkeys(str(f.resolve()) for f in (folder, Path.cwd())))
            yield Problem((section, key), f"no such {kind.split()[1]}: {text!r}", f"{kind} in {looked}, or an id of the hub")


def _first_existing(text: str, folders: Iterable[Path]) -> Path | None:
    try:
        candidates = [(folder / Path(text).expanduser()).resolve() for folder in folders]
        return next((candidate for candidate in candidates if candidate.exists()), None)
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, or no home folder: no such file
        return None
