"""Squared gradient norms, one for each group of parameters, and of the gradient as Adam would scale it."""

import math
from collections.abc import Sequence
from typing import Any

import torch

_SECOND_MOMENTS = ("max_exp_avg_sq", "exp_avg_sq", "square_avg", "sum")
"""Where Adam and its kin, RMSprop and Adagrad keep v; amsgrad divides by the largest so far."""
_TINY = 1e-30  # 0 / 0 is no square


class GroupSquares:
    """Adds up squared gradients by group: the optimizer's, or of a single one the model's top-level modules.

    `names` are the groups'. Parameters that the optimizer does not train belong to none.

    The preconditioned square is |P g|^2 with P = 1 / (sqrt(v) + eps), v the second moment in the optimizer's
    state: of the previous step, as long as this step's update has not happened. Its bias is corrected as the
    optimizer does, or the first steps would outweigh all others in a mean. P is 0 where v is: an element that
    never had a gradient has no scale yet. Sparse gradients are left out of it.
    """

    def __init__(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        groups = parameter_groups(module, optimizer)
        self.names = tuple(groups)
        self.parameters = [p for parameters in groups.values() for p in parameters]
        self.whole = {p for p in module.parameters() if p.requires_grad} <= set(self.parameters)
        """Whether the optimizer trains all that has a gradient."""
        self._optimizer = optimizer
        self._group_of = {p: n for n, parameters in enumerate(groups.values()) for p in parameters}
        self._setting_of = {p: group for group in optimizer.param_groups for p in group["params"]}
        self._indices: dict[tuple[int, ...], torch.Tensor] = {}
        self._corrections: dict[int, float] = {}

    def norms(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Give the norm of each gradient, float32 [gradients]: all that happens within a step."""
        values = [g.coalesce().values() if g.is_sparse else g for g in gradients]
        return torch.stack(torch._foreach_norm(values, 2.0, dtype=torch.float32))

    def by_group(self, parameters: Sequence[torch.Tensor], norms: torch.Tensor) -> torch.Tensor:
        """Add the squares of parameters' norms up by group: float32 [groups]."""
        # A parameter that is not trained goes to a slot behind the others, which is dropped.
        slots = tuple(self._group_of.get(p, len(self.names)) for p in parameters)
        if slots not in self._indices:
            self._indices[slots] = torch.tensor(slots, device=norms.device)
        found = torch.zeros(len(self.names) + 1, device=norms.device)
        return found.index_add_(0, self._indices[slots], norms.square())[:-1]

    def preconditioned(
        self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Give |P g|^2 of gradients, float32 []; 0 where the optimizer has no v."""
        device = gradients[0].device
        moments, scaled, epsilons, corrections = [], [], [], []
        for parameter, gradient in zip(parameters, gradients, strict=True):
            moment = self._moment(parameter)
            if moment is None or gradient.is_sparse:
                continue
            setting, state = self._setting_of[parameter], self._optimizer.state[parameter]
            correction = self._correction(setting, state)
            moments.append(moment.float())
            scaled.append(gradient.float())
            corrections.append(correction)
            # sqrt(v / c^2) + eps = (sqrt(v) + eps c) / c; Adamax holds eps in its moment.
            eps = 0.0 if "exp_inf" in state else setting["eps"] * correction
            epsilons.append(max(eps, _TINY))
        if not moments:
            return torch.zeros((), device=device)
        weights = torch._foreach_sqrt(moments)
        divisors = torch._foreach_add(weights, epsilons)
        torch._foreach_sign_(weights)
        torch._foreach_mul_(weights, scaled)
        torch._foreach_div_(weights, divisors)
        norms = torch.stack(torch._foreach_norm(weights, 2.0, dtype=torch.float32))
        return (norms * torch.tensor(corrections, device=device)).square().sum()

    def next_step(self) -> None:
        """Forget what held for one step: how far v's bias is corrected."""
        self._corrections.clear()

    def _moment(self, parameter: torch.Tensor) -> torch.Tensor | None:
        state = self._optimizer.state.get(parameter)
        if not state or "grad_avg" in state:  # centred RMSprop divides by something else
            return None
        if "exp_inf" in state:
            largest: torch.Tensor = state["exp_inf"]
            return largest.square()
        return next((state[name] for name in _SECOND_MOMENTS if name in state), None)

    def _correction(self, setting: dict[str, Any], state: dict[str, Any]) -> float:
        """Give c = sqrt(1 - beta2^step): v / c^2 is unbiased."""
        if "betas" not in setting or "step" not in state or "exp_inf" in state:
            return 1.0
        if id(setting) not in self._corrections:
            self._corrections[id(setting)] = math.sqrt(1 - setting["betas"][1] ** float(state["step"]))
        return self._corrections[id(setting)]


def parameter_groups(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, list[torch.Tensor]]:
    """Name the groups of an optimizer's parameters.

    They are the optimizer's own; where it has one, the modules at the top of the model, below any that
    hold everything. A parameter that several modules share is the first one's.
    """
    groups = optimizer.param_groups
    if len(groups) > 1:
        names = [f"group {n}" + (f" ({g['name']})" if "name" in g else "") for n, g in enumerate(groups)]
        return {name: list(group["params"]) for name, group in zip(names, groups, strict=True)}
    left = dict.fromkeys(groups[0]["params"])
    module = _top(module, left)
    found: dict[str, list[torch.Tensor]] = {}
    for name, child in module.named_children():
        own: list[torch.Tensor] = [p for p in child.parameters() if p in left]
        if own:
            found[f"{name} ({type(child).__name__})"] = own
            for p in own:
                del left[p]
    if left:
        found[type(module).__name__] = list(left)
    return found


def _top(module: torch.nn.Module, trained: dict[torch.Tensor, None]) -> torch.nn.Module:
    """Go down while a single child holds all that is trained."""
    children = [child for child in module.children() if trained.keys() & set(child.parameters())]
    if len(children) == 1 and not trained.keys() & set(module.parameters(recurse=False)):
        return _top(children[0], trained)
    return module
