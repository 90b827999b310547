"""Muon (Jordan et al. 2024): steps along the nearest orthogonal matrix, for the weights of hidden layers.

A gradient's few strongest directions rule a plain step; here all directions move alike. torch.optim.Muon, in torch since 2.9, takes
neither convolutions nor the parameters that are left to AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

MOMENTUM = 0.95
# of the quintic iteration x -> ax + b(xx')x + c(xx')^2 x, which brings all singular values near 1 in five steps
COEFFICIENTS = (3.4445, -4.775, 2.0315)
ITERATIONS = 5
# a step's root mean square is then about AdamW's, and a learning rate fits both (Liu et al., arXiv 2502.16982)
ADAMW_RMS = 0.2
# what reads or writes the latents, the captions or the words' weights; the rest is hidden
ENDS = ("text_encoder.", "unet.conv_in.", "unet.conv_out.", "adapter.stem.", "adapter.reweight.")
# a thinner matrix has few directions to balance
LEAST_SIDE = 16


def is_hidden_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter of TrainingModel is a matrix, or the kernel of a convolution, of a hidden layer."""
    return not name.startswith(ENDS) and is_matrix(parameter)


def is_matrix(parameter: torch.Tensor) -> bool:
    """Whether a parameter, as a matrix [out, in * ...], has directions enough to balance."""
    return parameter.ndim >= 2 and min(parameter.flatten(1).shape) >= LEAST_SIDE


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix [rows, columns] with all its singular values brought near 1, by Newton-Schulz iterations."""
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if is_tall else x


class MuonAdamW(torch.optim.AdamW):
    """AdamW, and Muon in parameter groups with "orthogonal": True. Kernels [out, in, ...] count as matrices [out, in * ...].

    `settings` are AdamW's own.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings: Any):
        super().__init__(groups, **settings)
        # Muon neither unscales gradients nor skips those that overflow: the loss scaler of fp16 has to, as for a plain AdamW
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all groups; returns what `closure` does."""
        groups = self.param_groups
        # a state of before there was Muon does not say
        orthogonal = [group for group in groups if group.get("orthogonal", False)]
        self.param_groups = [group for group in groups if not group.get("orthogonal", False)]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in orthogonal:
            self._step_along_orthogonal(group)
        return loss

    def _step_along_orthogonal(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                # AdamW wants to find a step in every state that it loads
                state.update(step=torch.zeros(()), momentum=torch.zeros_like(parameter))
            state["step"] += 1
            momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
            # Nesterov's: where the momentum will be
            matrix = parameter.grad.lerp(momentum, MOMENTUM).flatten(1)
            scale = ADAMW_RMS * max(matrix.shape) ** 0.5
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(orthogonalised(matrix).view_as(parameter), alpha=-group["lr"] * scale)
