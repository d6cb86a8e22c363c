"""liger-kernel's fused RMSNorm, rotary positions and gated units on a base that lies on a GPU, where installed.

Hsu et al. 2024, arXiv:2410.10989. Each is one pass over memory instead of several. Its fused loss is not taken: ours
runs the output layer on the learned positions alone. The library writes into transformers' modules too, which bases on
a CPU use as well; that is undone, so that only this base computes otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from inspect import isclass
from typing import Any

import torch
from torch import Tensor

from tasks.training.folder import first_line

ASKED = {"cross_entropy": False, "fused_linear_cross_entropy": False}
PROBE_TOKENS = 8
CLOSE = {torch.bfloat16: 0.05, torch.float16: 0.01}  # of the norm; float32 is held to 1e-3


def use_fused_kernels(model: Any, device: torch.device) -> str:
    """Put the kernels on a loaded model; what was done and why, in words, "" on a CPU.

    They stay only if logits and gradients of a short probe are as before; else the model is what it was.
    """
    if device.type != "cuda":
        return ""
    if find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    kind = str(getattr(model.config, "model_type", ""))
    modules = [(module, dict(vars(module))) for module in model.modules()]
    shared = sys.modules[type(model).__module__]
    own = dict(vars(shared))
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

        if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
            return f"liger-kernel has no kernels for {kind}"
        before = _probed(model)
        _apply_liger_kernel_to_instance(model, **ASKED)
        _only_on_gpus(shared, own)
        wrong = _difference(before, _probed(model), model.dtype)
    except Exception as error:  # a kernel is compiled when it first runs, and may fail in any way
        wrong = first_line(error)
    if not wrong:
        return f"liger-kernel computes {kind}'s norms, rotary positions and gated units"
    for module, was in modules:
        vars(module).clear()
        vars(module).update(was)
    vars(shared).update(own)
    return f"without liger-kernel, which failed here: {wrong}"


def _only_on_gpus(shared: Any, own: dict[str, Any]) -> None:
    """Classes as they were; a replaced function asks where its tensors are."""
    for name, was in own.items():
        now = vars(shared)[name]
        if now is not was:
            setattr(shared, name, was if isclass(was) else _by_device(now, was))


def _by_device(fused: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(plain)
    def chosen(first: Tensor, *others: Any, **named: Any) -> Any:
        return (fused if first.is_cuda else plain)(first, *others, **named)

    return chosen


def _probed(model: Any) -> tuple[Tensor, Tensor]:
    """(logits, gradient of what the layers read) of a few tokens."""
    embeddings = model.get_input_embeddings()
    tokens = torch.arange(PROBE_TOKENS, device=embeddings.weight.device)[None] % embeddings.num_embeddings
    read = embeddings(tokens).detach().requires_grad_()
    with torch.enable_grad():
        logits = model(inputs_embeds=read).logits
        (gradient,) = torch.autograd.grad(logits.float().pow(2).mean(), read)
    return logits.detach().float(), gradient.float()


def _difference(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], dtype: torch.dtype) -> str:
    """What is not as it was, in words."""
    for what, was, now in zip(("logits", "gradients"), before, after, strict=True):
        apart = float((now - was).norm() / was.norm().clamp_min(1e-12))
        if not apart <= CLOSE.get(dtype, 1e-3):
            return f"its {what} are {apart:.2g} of their norm away from the plain ones"
    return ""
