"""Training that keeps a device busy: the whole step as one CUDA graph, paced by time.

A network this small leaves a card idle between its thousands of kernels; a graph starts them all at once. On a
processor the same step runs as it is.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

Tensors = Mapping[str, Tensor]
WARM_UP = 3
"""Steps before the graph is taken, as PyTorch asks for."""


@dataclass(frozen=True)
class Pace:
    """How a network is trained in a given time.

    Attributes:
        seconds: of training, over all legs.
        batch: samples of a step.
        steps: after which it ends although there is time left.
        lr: the highest learning rate; it rises over `warmup` steps and falls as half a cosine wave from the share
            `decay_from` of the time on.
        until: the share of the time after which it ends, where several train in turn.
        ema: what the averaged weights keep at a step.
        clip_norm, weight_decay, betas: of AdamW.
    """

    seconds: float
    batch: int
    lr: float = 1e-3
    warmup: int = 200
    decay_from: float = 0.4
    until: float = 1.0
    steps: float = math.inf
    ema: float = 0.999
    clip_norm: float = 1.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)

    def rate(self, step: int, progress: float) -> float:
        """The learning rate at a step and at a share of the time, 0 to 1."""
        fallen = max(0.0, progress / self.until - self.decay_from) / (1 - self.decay_from)
        return self.lr * min(1.0, (step + 1) / self.warmup) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, fallen)))


class Stepper:
    """One network's optimizer, averaged weights and step.

    Args:
        named: the trained parameters by name.
        loss: the static inputs to named losses; "loss" is minimized. It may not ask the device for a value.
        inputs: tensors on the device, read by `loss`; every step's are copied into these.
        also: losses that may be computed beside `loss` at once, such as that of a copy of the network with the same
            trained parameters. On a processor each takes a share of the batch in a thread of its own; a card leaves
            them alone.
        slowed: some of the names, whose learning rate is `slow` times the pace's.
        slow: a share of the learning rate.
        bf16: whether a card computes the loss under autocast to bfloat16. A processor never does, as some are slower
            with it.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        loss: Callable[[Tensors], Tensors],
        inputs: dict[str, Tensor],
        pace: Pace,
        *,
        also: Sequence[Callable[[Tensors], Tensors]] = (),
        slowed: Container[str] = (),
        slow: float = 1.0,
        bf16: bool = True,
    ) -> None:
        self.named, self.pace, self.inputs = dict(named), pace, inputs
        self.weights: list[nn.Parameter] = list(self.named.values())
        self.device = self.weights[0].device
        self.averaged = [w.detach().clone() for w in self.weights]
        groups: list[dict[str, Any]] = []
        for share, chosen in ((1.0, False), (slow, True)):
            weights = [weight for name, weight in self.named.items() if (name in slowed) == chosen]
            if weights:
                groups.append({"params": weights, "lr": torch.zeros((), device=self.device), "share": share})
        self._keep = torch.zeros((), device=self.device)
        self._zero = torch.zeros((), device=self.device)
        on_card = self.device.type == "cuda"
        self._loss, self._bf16 = loss, bf16 and on_card
        self._shares = [] if on_card or not also else [loss, *also]
        self._threads = None
        if self._shares:  # gradients of attention are full of numbers near 0, which cost a processor many times as much
            self._threads = ThreadPoolExecutor(
                len(self._shares), initializer=torch.set_flush_denormal, initargs=(True,)
            )
        self.optimizer = torch.optim.AdamW(
            groups,
            betas=pace.betas,
            weight_decay=pace.weight_decay,
            capturable=on_card,
            fused=on_card or None,
        )
        self.steps = self._warm = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        # Warm-up and capture share one stream, so that gradients are accumulated on the stream that made them.
        self._side = torch.cuda.Stream() if on_card else None
        self.sums: dict[str, Tensor] = {}

    def step(self, progress: float, pool: object = None) -> None:
        """One step on what lies in `inputs`, at a share of the time."""
        rate = self.pace.rate(self.steps, progress)
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate * group["share"])
        self._keep.fill_(1 - min(self.pace.ema, (1 + self.steps) / (10 + self.steps)))
        if self._graph is not None:
            self._graph.replay()
        elif self.device.type != "cuda":
            self._compute()
        elif self._warm < WARM_UP:
            self._warm += 1
            side = self._side
            assert side is not None
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._compute()
            torch.cuda.current_stream().wait_stream(side)
        else:
            self._capture(pool)
        self.steps += 1

    def _capture(self, pool: object) -> None:
        """Take the step's graph and run it. A step that cannot be taken runs as it is from then on, and says so."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=self._side):  # type: ignore[arg-type]
                self._compute()
        except RuntimeError as error:
            log.warning(f"no graph of this step, it runs as it is: {str(error).strip().splitlines()[0]}")
            self._warm = -sys.maxsize
            torch.cuda.synchronize()
            self._compute()
            return
        self._graph = graph
        graph.replay()

    def _compute(self) -> None:
        if self._threads is not None:
            losses = self._backward_in_shares(self._threads)
        else:
            torch._foreach_zero_([weight.grad for weight in self.weights if weight.grad is not None] or [self._zero])
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16, cache_enabled=False):
                losses = self._loss(self.inputs)
            losses["loss"].backward()
        nn.utils.clip_grad_norm_(self.weights, self.pace.clip_norm, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            away = torch._foreach_sub([w.data for w in self.weights], self.averaged)
            torch._foreach_mul_(away, self._keep)
            torch._foreach_add_(self.averaged, away)
            for name, value in losses.items():
                if name not in self.sums:
                    self.sums[name] = torch.zeros((), device=self.device)
                self.sums[name] += value.detach().float()

    def _backward_in_shares(self, threads: ThreadPoolExecutor) -> Tensors:
        """Put the mean gradients of all shares into the weights; returns the mean losses."""
        count = len(self._shares)

        def share(number: int) -> tuple[Tensors, Sequence[Tensor | None]]:
            part = {name: value.chunk(count)[number] for name, value in self.inputs.items()}
            losses = self._shares[number](part)
            # Not `backward`: two at once would add to the same gradients.
            gradients = torch.autograd.grad(losses["loss"], self.weights, allow_unused=True)
            return {name: value.detach() for name, value in losses.items()}, gradients

        found = list(threads.map(share, range(count)))
        for weight, *of_shares in zip(self.weights, *(gradients for _, gradients in found), strict=True):
            weight.grad = None if of_shares[0] is None else torch.stack(of_shares).mean(0)
        return {name: torch.stack([losses[name] for losses, _ in found]).mean() for name in found[0][0]}

    def take_sums(self) -> dict[str, float]:
        """The losses' sums since the last call."""
        found = {name: float(value) for name, value in self.sums.items()}
        for value in self.sums.values():
            value.zero_()
        return found

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights into the network; training ends here."""
        for weight, value in zip(self.weights, self.averaged, strict=True):
            weight.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Everything that going on needs, on the CPU."""
        found: dict[str, Tensor] = {}
        for name, weight, averaged in zip(self.named, self.weights, self.averaged, strict=True):
            moments = self.optimizer.state.get(weight, {})
            parts = {"weight": weight, "averaged": averaged, **moments}
            found |= {
                f"{part}|{name}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
                for part, value in parts.items()
            }
        return found

    @torch.no_grad()
    def load(self, found: Mapping[str, Tensor], steps: int) -> None:
        """Go on from a `state` after so many steps."""
        for name, weight, averaged in zip(self.named, self.weights, self.averaged, strict=True):
            weight.copy_(found[f"weight|{name}"])
            averaged.copy_(found[f"averaged|{name}"])
            if f"exp_avg|{name}" in found:
                moments = {part: found[f"{part}|{name}"] for part in ("exp_avg", "exp_avg_sq", "step")}
                on_card = self.device.type == "cuda"
                self.optimizer.state[weight] = {
                    part: value.clone().to(self.device if on_card or part != "step" else "cpu")
                    for part, value in moments.items()
                }
        self.steps = steps


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters of a module by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def shares_of(batch: int, threads: int) -> int:
    """How many shares of even size a batch has for so many threads: on two cores two threads with a share each make 25
    samples a second, and go on at half of it beside other work, where two that share each operation make one."""
    return max(count for count in range(1, threads + 1) if count == 1 or batch % (2 * count) == 0)


def twins(network: nn.Module, count: int) -> list[Any]:
    """Copies of a network with its own parameters: what is hooked or injected into one is not in the others."""
    return [copy.deepcopy(network, {id(p): p for p in network.parameters()}) for _ in range(count)]


@contextlib.contextmanager
def one_thread_each(device: torch.device) -> Iterator[int]:
    """How many threads may have a share of a batch each; while they do, a processor's operations have one thread."""
    threads = torch.get_num_threads()
    if device.type == "cuda":
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
