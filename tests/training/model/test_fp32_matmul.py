"""Products of 16-bit weights in float32, block by block."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qpeft.training import environment
from qpeft.training.model import fp32_matmul


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same number of rows is few on every processor."""
    monkeypatch.setattr(fp32_matmul, "FEW_OF_SLOW", fp32_matmul.FEW)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_and_gradients_are_those_of_float32(dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp32_matmul, "BLOCK", 24 * 10)  # 37 outputs in four blocks
    torch.manual_seed(0)
    layer = nn.Linear(24, 37, bias=bias, dtype=dtype).requires_grad_(False)
    twin = nn.Linear(24, 37, bias=bias).requires_grad_(False)
    twin.load_state_dict(layer.state_dict())
    assert fp32_matmul.widen(layer) == 1
    x = torch.randn(2, 9, 24, dtype=dtype, requires_grad=True)
    y = x.detach().float().requires_grad_()
    out, want = layer(x), twin(y)
    assert out.dtype == dtype
    assert torch.equal(out, want.to(dtype))
    grad = torch.randn(2, 9, 37, dtype=dtype)
    out.backward(grad)
    want.backward(grad.float())
    torch.testing.assert_close(x.grad, y.grad.to(dtype))


def test_what_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.bfloat16), nn.Embedding(3, 4, dtype=torch.bfloat16))
    before = model.state_dict()
    assert fp32_matmul.widen(model) == 1
    assert fp32_matmul.widen(model) == 0
    assert [type(part) for part in model] == [nn.Linear, fp32_matmul.WideLinear, nn.Embedding]
    assert all(value is before[name] or torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_weight_that_is_trained_has_its_gradient() -> None:
    layer = nn.Linear(8, 8, dtype=torch.bfloat16)
    fp32_matmul.widen(layer)
    layer(torch.randn(16, 8, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize(("instructions", "few"), [("slow", 5), ("none", 3)])
def test_a_product_of_few_rows_is_left_to_the_processor(instructions: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp32_matmul, "bfloat16_instructions", lambda: instructions)
    monkeypatch.setattr(fp32_matmul, "FEW_OF_SLOW", 5)
    monkeypatch.setattr(fp32_matmul, "FEW", 3)
    layer = nn.Linear(8, 8, dtype=torch.bfloat16).requires_grad_(False)
    fp32_matmul.widen(layer)
    for rows in range(1, 7):
        out = layer(torch.randn(rows, 8, dtype=torch.bfloat16, requires_grad=True))
        assert ("_Product" in type(out.grad_fn).__name__) == (rows >= few)


@pytest.mark.parametrize(
    ("processor", "have", "found"),
    [
        ("Intel(R) Xeon(R) Processor", {"avx512_bf16": True, "amx_bf16": True}, "fast"),
        ("Intel(R) Xeon(R) Processor", {"avx512_bf16": True}, "slow"),
        ("Intel(R) Xeon(R) Processor", {"avx512_f": True}, "none"),
        ("AMD EPYC", {"avx512_bf16": True}, "fast"),
        ("AMD EPYC", {}, "none"),
    ],
)
def test_a_processors_instructions(processor: str, have: dict[str, bool], found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_processor", lambda: processor)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", **have}, raising=False)
    assert environment.bfloat16_instructions() == found


@pytest.mark.parametrize(("rows", "length", "kept"), [(1, 5, 1), (3, 5, 1), (3, 5, 2), (3, 1, 1), (2, 5, 0)])
def test_an_output_layer_takes_its_rows_as_one_block(rows: int, length: int, kept: int) -> None:
    plain, head = nn.Linear(8, 11), nn.Linear(8, 11)
    head.load_state_dict(plain.state_dict())
    fp32_matmul.compact(head)
    taken: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    states = torch.randn(rows, length, 8, requires_grad=True)
    cut = states[:, length - kept :]
    out = head(cut)
    assert taken[0].stride() == (kept * 8 or 8, 8, 1)
    torch.testing.assert_close(out, plain(cut))
    out.sum().backward()
    assert states.grad is not None


def test_lora_beside_a_widened_layer_of_a_whole_model() -> None:
    """Loss and gradients of a small model in bfloat16 storage are within bfloat16's rounding of the native ones."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    def made() -> nn.Module:
        torch.manual_seed(0)
        sizes = dict.fromkeys(("hidden_size", "intermediate_size"), 32)
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, **sizes)
        )
        return model.to(torch.bfloat16)

    losses = []
    for widened in (False, True):
        base = made()
        if widened:
            assert fp32_matmul.widen(base) == 2 * 7 + 1
        torch.manual_seed(1)
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        tokens = torch.arange(32)[None]
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        losses.append(loss.item())
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
