"""One chip for several processes: the first runs the circuits of all, the others get their values and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qpeft.circuits.executor import Executor, Expectations
from qpeft.circuits.ir import Circuit, Observable
from qpeft.training.processes import Processes


class AskOnce:
    """An Executor whose calls every process makes together, in the same order; `inner` runs in the first process alone.

    Args:
        inner: the executor of the first process; None in the others.
        processes: those that call together.
        same_rows: every process asks for the same inputs, as on a grid: they run once. The gradient is then the mean over
            processes. Otherwise the rows of all are joined, and each process gets its own back; the gradient of the angles is the
            sum, in the first process, so that the mean over processes that data-parallel training takes is right.
    """

    has_state = False

    def __init__(self, inner: Executor | None, processes: Processes, *, same_rows: bool) -> None:
        self.inner, self.processes, self.same_rows = inner, processes, same_rows

    def compile(self, circuit: Circuit, observables: Sequence[Observable] | None = None) -> Expectations:
        """See `Executor.compile`; the first process compiles, and its errors are everybody's."""
        run: list[Expectations] = []

        def compile_in_first() -> None:
            assert self.inner is not None
            run.append(self.inner.compile(circuit, observables))

        self.processes.on_first(compile_in_first)
        inner = run[0] if run else None

        def call(inputs: Tensor, angles: Tensor) -> Tensor:
            out: Tensor = _Shared.apply(inputs, angles, inner, self)  # type: ignore[no-untyped-call]
            return out

        return call


class _Shared(torch.autograd.Function):
    """Values of the inner executor, and its gradient, for inputs of all processes."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, angles: Tensor, inner: Expectations | None, executor: AskOnce) -> Tensor:
        processes, same = executor.processes, executor.same_rows
        parts = [inputs.detach().cpu()] if same else processes.gather(inputs.detach().cpu())
        sizes = [part.shape[0] for part in parts]
        with torch.inference_mode(False):  # else the copies could not be differentiated
            leaf = torch.cat(parts).clone().requires_grad_(inputs.requires_grad)
            turns = angles.detach().cpu().clone().requires_grad_(angles.requires_grad)
        values: list[Tensor] = []

        def run() -> Tensor:
            assert inner is not None
            with torch.inference_mode(False), torch.set_grad_enabled(any(ctx.needs_input_grad[:2])):
                values.append(inner(leaf, turns))
            return values[0].detach()

        found = processes.on_first(run)
        start = 0 if same else sum(sizes[: processes.rank])
        ctx.own = slice(start, start + inputs.shape[0])
        ctx.values, ctx.leaf, ctx.angles, ctx.executor = values, leaf, turns, executor
        return found[ctx.own].to(device=inputs.device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        processes, same = ctx.executor.processes, ctx.executor.same_rows
        need_inputs, need_angles = ctx.needs_input_grad[:2]
        grads = processes.gather(grad.detach().cpu())
        joined = torch.stack(grads).mean(0) if same else torch.cat(grads)

        def pull() -> tuple[Tensor | None, Tensor | None]:
            wanted = [tensor for tensor, need in ((ctx.leaf, need_inputs), (ctx.angles, need_angles)) if need]
            found = list(torch.autograd.grad(ctx.values[0], wanted, joined.to(ctx.values[0]), retain_graph=True))
            return (found.pop(0) if need_inputs else None), (found.pop(0) if need_angles else None)

        by_inputs, by_angles = processes.on_first(pull)
        if by_angles is not None:
            by_angles = by_angles if same or processes.first else torch.zeros_like(by_angles)
            by_angles = by_angles.to(grad.device)
        own = None if by_inputs is None else by_inputs[ctx.own].to(grad.device)
        return own, by_angles, None, None
