"""The bridge to PEFT: the contract for every variant and for a third party's method, registration, saving, refusals."""

from __future__ import annotations

import contextlib
import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    convert_to_lora,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch import Tensor, nn

import qpeft
from qpeft.adapters import peft as bridge
from qpeft.adapters import registry
from qpeft.adapters.base import AdapterConfig, Delta
from qpeft.adapters.inspection import count_parameters
from qpeft.adapters.registry import METHODS, Method
from qpeft.errors import AdapterError, MergeError, MissingDependencyError
from qpeft.testing import RULES, SLOW, check_adapter

SMALL: dict[str, Any] = {"r": 2, "hidden_size": 16, "bond_dim": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "circuit": {},
    "three qubits, dropout": {"r": 3, "dropout": 0.1},
    "published": {"init": "published"},
    "multiply": {"fusion": "multiply"},
    "quantum path": {"classical_path": False},
    "no tensor": {"tensor": False},
    "shared in a layer": {"share_circuit": "layer"},
    "shared in the model": {"share_circuit": "model"},
    **{qnn: {"qnn": qnn} for qnn in ("none", "cos", "mlp2", "product", "frozen")},
}
FAST = [name for name in RULES if name not in SLOW]


def config(**settings: Any) -> PeftConfig:
    return qpeft.QTHAConfig(**{**SMALL, **settings})


def pair(**settings: Any) -> Any:
    """Two linear layers, the first adapted."""
    torch.manual_seed(0)
    return get_peft_model(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)), config(target_modules=["0"], **settings)).eval()


# The contract ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(variant: str) -> None:
    check_adapter(partial(config, **VARIANTS[variant]), only=FAST)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["circuit", "shared in the model", "none"])
def test_contract_compiled(variant: str) -> None:
    check_adapter(partial(config, **VARIANTS[variant]), only=SLOW)


def test_every_method_has_its_config_in_the_package() -> None:
    ours = [method for method in METHODS.values() if method.config.__module__.startswith("qpeft.")]  # not those of other tests
    assert len(ours) >= 9
    for method in ours:
        made = getattr(qpeft, method.config.__name__)
        assert made is bridge.config_class(method.name)
        assert method.config.__name__ in dir(qpeft)


def test_lora_as_a_yardstick() -> None:
    """PEFT's LoRA keeps the contract but for one rule: loaded beside a bfloat16 base it is rounded to bfloat16 on the way."""
    lora = partial(LoraConfig, r=4)
    check_adapter(lora, only=FAST, skip=["loading_keeps_precision"])
    with pytest.raises(
        AssertionError, match=r"loading_keeps_precision: from_pretrained, low_cpu_mem_usage=True: .* off by .*allowed 0"
    ):
        check_adapter(lora, only=["loading_keeps_precision"])


def test_an_unknown_rule() -> None:
    with pytest.raises(AdapterError, match=r"unknown rules.*starts_as_a_noop.*starts_as_no_op"):
        check_adapter(config, only=["starts_as_a_noop"])


# A third party's method, and broken ones that the contract must catch ----------------------------------------------------


@dataclass
class ScaledConfig(AdapterConfig):
    """A rank-r map."""

    r: int = field(default=2, metadata={"help": "Rank."})
    fault: str = field(default="", metadata={"help": "What to break, for the test of the contract."})


class Scaled(Delta):
    """`delta = B A x`, with `fault` one of the mistakes that methods make."""

    def __init__(self, d_in: int, d_out: int, config: ScaledConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        self.fault = config.fault
        self.down = nn.Parameter(torch.randn(config.r, d_in) / d_in**0.5)
        self.up = nn.Parameter(torch.zeros(d_out, config.r))
        if self.fault == "starts active":
            nn.init.ones_(self.up)
        if self.fault == "dead parameter":
            self.unused = nn.Parameter(torch.zeros(3))
        if self.fault == "unsaved state":
            self.register_buffer("sign", torch.sign(torch.randn(d_out)), persistent=False)

    @property
    def linear(self) -> bool:
        return self.fault != "claims to be non-linear"

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.linear(x, self.down)
        if self.fault == "claims to be linear":
            h = torch.tanh(h)
        if self.fault == "batch":
            h = h - h.mean(0, keepdim=True)
        y = nn.functional.linear(h, self.up)
        if self.fault == "unsaved state":
            y = y * self.get_buffer("sign")
        return y


FAULTS = {
    "starts active": "starts_as_no_op",
    "dead parameter": "every_parameter_learns",
    "unsaved state": "saves_and_loads",
    "claims to be linear": "refuses_to_merge_otherwise",
    "claims to be non-linear": "merges_when_linear",
    "batch": "takes_any_size_and_shape",
}


@pytest.fixture(scope="module")
def third_party() -> Iterator[type[PeftConfig]]:
    """A method registered after peft was imported; forgotten again at the end."""
    registry.register(Method("SCALED_MAP", ScaledConfig, Scaled, "none", "a rank-r map"))
    yield PEFT_TYPE_TO_CONFIG_MAPPING["SCALED_MAP"]
    METHODS.unregister("SCALED_MAP")
    for mapping in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING):
        del mapping["SCALED_MAP"]


def test_a_third_partys_method_keeps_the_contract(third_party: type[PeftConfig]) -> None:
    check_adapter(third_party, only=FAST)
    assert bridge.config_class("scaled_map") is third_party


@pytest.mark.parametrize("fault", FAULTS)
def test_the_contract_catches(third_party: type[PeftConfig], fault: str) -> None:
    with pytest.raises(AssertionError, match=f"^{FAULTS[fault]}: "):
        check_adapter(partial(third_party, fault=fault), only=[FAULTS[fault]])


def test_declared_dead_parameters_may_stay(third_party: type[PeftConfig]) -> None:
    check_adapter(partial(third_party, fault="dead parameter"), only=["every_parameter_learns"], dead=r"\.unused$")


@pytest.mark.parametrize("name", ["scaled", "Scaled", "SCALED__MAP", "SCALED_", "2X", "A B", ""])
def test_names_that_peft_could_not_use(name: str) -> None:
    with pytest.raises(AdapterError, match="upper case"):
        registry.register(Method(name, ScaledConfig, Scaled, "none", "a rank-r map"))


def test_a_name_that_is_taken() -> None:
    with pytest.raises(AdapterError, match="exists already"):
        registry.register(Method("QTHA", ScaledConfig, Scaled, "none", "a rank-r map"))


# Registration ---------------------------------------------------------------------------------------------------------


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light_and_quick() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import qpeft; t = time.perf_counter() - t\n"
        "dir(qpeft); print(t, sorted({'torch', 'peft', 'transformers', 'numpy'} & sys.modules.keys()))"
    )
    outputs = [run(code).split(maxsplit=1) for _ in range(5)]
    assert {loaded.strip() for _, loaded in outputs} == {"[]"}
    assert min(float(seconds) for seconds, _ in outputs) < 0.1


@pytest.mark.parametrize(
    "imports",
    [
        pytest.param("import peft, qpeft", marks=pytest.mark.slow),
        "import qpeft, importlib.util; assert importlib.util.find_spec('peft'); import peft",
        pytest.param("from qpeft import QTHAConfig; import peft", marks=pytest.mark.slow),
    ],
)
def test_registered_in_whatever_order(imports: str) -> None:
    code = (
        f"{imports}\nfrom peft import PeftConfig\nimport peft.mapping as m\n"
        "print('QTHA' in m.PEFT_TYPE_TO_CONFIG_MAPPING and 'QTHA' in m.PEFT_TYPE_TO_TUNER_MAPPING, "
        "type(peft.__spec__.loader).__name__, type(peft.__loader__).__name__)"
    )
    assert run(code).split() == ["True", "SourceFileLoader", "SourceFileLoader"]


def test_importing_peft_still_fails_where_it_would() -> None:
    code = "import sys, qpeft\nsys.path.clear()\ntry: import peft\nexcept ModuleNotFoundError as error: print(error)"
    assert run(code).strip() == "No module named 'peft'"


def test_an_old_peft_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.20.1")
    with pytest.raises(MissingDependencyError, match=r"peft>=0\.21"):
        bridge.register_all()


def test_config_class_by_name() -> None:
    assert bridge.config_class("qtha") is qpeft.QTHAConfig
    assert bridge.config_class("LoRA") is LoraConfig
    with pytest.raises(AdapterError, match=r"unknown peft_type.*'qlora'.*LORA.*QTHA"):
        bridge.config_class("qlora")


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_round_trip(variant: str, tmp_path: Path) -> None:
    made = config(target_modules=["v_proj", "q_proj"], exclude_modules=["lm_head"], **VARIANTS[variant])
    made.save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "QTHA"
    assert sorted(saved["target_modules"]) == ["q_proj", "v_proj"]
    for loaded in (PeftConfig.from_pretrained(str(tmp_path)), qpeft.QTHAConfig.from_pretrained(str(tmp_path)), copy.deepcopy(made)):
        assert type(loaded) is qpeft.QTHAConfig
        assert loaded.to_dict() == made.to_dict()


# Layers and adapters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", ["layer", "model"])
def test_sharing_is_within_an_adapter(share: str) -> None:
    """A second adapter has circuits of its own."""
    settings = {"target_modules": ["0", "1"], "share_circuit": share}
    model = get_peft_model(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), config(**settings))
    model.add_adapter("other", config(**settings))
    for name in ("default", "other"):
        circuits = [key for key in get_peft_model_state_dict(model, adapter_name=name) if key.endswith("qnn.angles")]
        assert len(circuits) == (1 if share == "model" else 2)


def test_parameters_are_counted_without_building_them() -> None:
    with torch.device("meta"):
        base = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    found = count_parameters(base, config(target_modules=["0", "1"]))
    trainable = sum(p.numel() for p in pair().parameters() if p.requires_grad)
    assert found["base"] == 6 * 8 + 8 + 8 * 4 + 4
    assert found["lora"] == 2 * (6 + 8) + 2 * (8 + 4)
    assert trainable < found["trainable"] < 3 * trainable
    assert count_parameters(nn.Sequential(nn.Linear(6, 8)), LoraConfig(r=3, target_modules=["0"])) == {
        "trainable": 42,
        "lora": 42,
        "base": 56,
    }


@pytest.mark.parametrize("module", [nn.Embedding(5, 4), nn.Conv1d(2, 3, 1), nn.Bilinear(2, 3, 4), nn.LayerNorm(3)])
def test_layers_that_are_not_linear_are_refused(module: nn.Module) -> None:
    with pytest.raises(TypeError, match="is not supported: qpeft adapts linear layers"):
        get_peft_model(nn.Sequential(module), config(target_modules=["0"]))


class Quantised(nn.Module):
    """A stand-in for a quantised linear layer: bytes for a weight, bfloat16 out."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 6, 4
        self.register_buffer("weight", torch.arange(24, dtype=torch.uint8).reshape(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.bfloat16(), self.get_buffer("weight").bfloat16() / 24)


def test_quantised_base() -> None:
    base, x = nn.Sequential(Quantised()), torch.randn(3, 6)
    before = base(x)
    model = get_peft_model(base, config(target_modules=["0"], qnn="none"))
    assert torch.equal(model(x), before)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    model(x).sum().backward()
    with pytest.raises(MergeError, match=r"quantised.*Quantised.*without quantisation"):
        model.merge_adapter()
    assert torch.equal(model(x), before)


def test_a_merge_that_is_not_finite_is_refused() -> None:
    model = pair(qnn="none")
    weight = model.base_model.model[0].base_layer.weight
    before = weight.clone()
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("inf"))
    with pytest.raises(MergeError, match=r"NaNs detected in the merged weights. The adapter default"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(weight, before)
    assert not model.base_model.model[0].merged


def test_unmerging_twice_warns() -> None:
    model = pair(qnn="none")
    model.merge_adapter()
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.base_model.model[0].unmerge()


def test_merged_and_disabled_is_the_base() -> None:
    model, x = pair(qnn="none", init_weights=False), torch.randn(3, 6)
    with model.disable_adapter():
        base = model(x)
    model.merge_adapter()
    assert not torch.allclose(model(x), base)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), base)


@pytest.mark.parametrize("kind", ["QTHA", "CAYLEY", "QUIC"])
@pytest.mark.parametrize("shape", [(5, 6), (5, 3, 6)])
def test_a_batch_runs_on_an_adapter_for_each_sample(kind: str, shape: tuple[int, ...]) -> None:
    made = bridge.config_class(kind)(target_modules=["0"], init_weights=False)
    model = get_peft_model(nn.Sequential(nn.Linear(6, 4)).bfloat16(), made).eval()
    model.add_adapter("other", copy.deepcopy(made))
    x, names = torch.randn(shape).bfloat16(), ["other", "default", "__base__", "other", "default"]
    want = torch.empty(*shape[:-1], 4).bfloat16()
    for row, name in enumerate(names):
        with model.disable_adapter() if name == "__base__" else contextlib.nullcontext():
            if name != "__base__":
                model.set_adapter(name)
            want[row] = model(x[row : row + 1])[0]
    found = model(x, adapter_names=names)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, want, rtol=0.02, atol=0.02)
    assert (want[0] - want[2]).abs().max() > 0.05
    model.set_adapter("default")
    torch.testing.assert_close(model(x)[1], want[1], rtol=0.02, atol=0.02)


def test_a_batch_that_cannot_name_its_adapters_is_refused() -> None:
    model, x = pair().eval(), torch.randn(2, 6)
    with pytest.raises(AdapterError, match=r"no such adapter; got 'third'; allowed: __base__, default"):
        model(x, adapter_names=["default", "third"])
    with pytest.raises(AdapterError, match="a name for each sample; got 1; allowed: 2"):
        model(x, adapter_names=["default"])
    with pytest.raises(AdapterError, match="is for inference"):
        model.train()(x, adapter_names=["default", "default"])


def test_adapter_follows_its_base_without_autocast() -> None:
    base = nn.Sequential(nn.Linear(6, 4)).bfloat16()
    x = torch.randn(3, 6).bfloat16()
    before = base(x)
    model = get_peft_model(base, config(target_modules=["0"]), autocast_adapter_dtype=False)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model(x), before)
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_adapter_trained_beside_float32_loads_beside_float64(tmp_path: Path) -> None:
    pair(init_weights=False).save_pretrained(str(tmp_path))
    for low in (False, True):
        loaded = PeftModel.from_pretrained(
            nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)).double(), str(tmp_path), low_cpu_mem_usage=low
        )
        assert {p.dtype for p in loaded.parameters()} == {torch.float64}
        assert loaded(torch.randn(2, 6, dtype=torch.float64)).dtype == torch.float64


def test_linear_adapter_converts_to_lora() -> None:
    model, x = pair(qnn="none", init_weights=False), torch.randn(3, 6)
    lora, state = convert_to_lora(model, rank=2, progressbar=False)
    converted = get_peft_model(copy.deepcopy(model).unload(), lora).eval()
    set_peft_model_state_dict(converted, state)
    torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-4)
    assert not bridge.DeltaLayer.supports_lora_conversion(pair().base_model.model[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bias": "some"}, "unknown bias"),
        ({"budget": 0.24}, "there are none"),
        ({"budget": 0.24, "bond_dim": "auto", "tensor": False}, "there are none"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(AdapterError, match=words):
        qpeft.QTHAConfig(**settings)


def test_a_method_may_not_take_the_name_of_one_of_pefts() -> None:
    qtha = METHODS["QTHA"]
    with pytest.raises(AdapterError, match="PEFT has a method of this name"):
        registry.register(Method("LORA", qtha.config, qtha.delta, "", ""))
    assert "LORA" not in METHODS
