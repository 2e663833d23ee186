"""What a forward pass costs, by count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from companion.training import evaluation_mode


def forward_macs(model: nn.Module | Callable[[Tensor], object], inputs: Tensor) -> int:
    """Count the multiply-accumulates of one forward pass in inference mode.

    Half of what PyTorch's counter sees: convolutions and matrix products. It does not see into
    fused kernels, so attention runs under the plain backend and without `nn.MultiheadAttention`'s
    fast path, recurrent networks without oneDNN's and cuDNN's. Works on the meta device, where
    nothing is computed, and inside `torch.no_grad` and `torch.inference_mode` too.

    >>> forward_macs(nn.LSTM(8, 16), torch.rand(5, 1, 8))  # steps x gates x width x (in + width)
    7680
    """
    counter = FlopCounterMode(display=False)
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    # what was made in inference mode cannot be saved for a backward pass; but without gradients
    # the counter fails on modules that are given a parameter, as by CaiT
    savable = not any(p.is_inference() for module in modules for p in module.parameters(False))
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(savable),
        evaluation_mode(model) if isinstance(model, nn.Module) else nullcontext(),
        _without_fused_kernels(
            recurrent=not modules or any(isinstance(module, nn.RNNBase) for module in modules)
        ),
        counter,
    ):
        model(inputs.clone() if inputs.is_inference() else inputs)
    return counter.get_total_flops() // 2


@contextmanager
def _without_fused_kernels(recurrent: bool) -> Iterator[None]:
    """Attention and recurrent networks in plain products, as long as the block runs.

    recurrent: whether there may be such ones; without their libraries convolutions are slow.
    """
    backends: Any = torch.backends
    # whose `flags` would warn on a CPU
    libraries = (backends.mkldnn, backends.cudnn) if recurrent else ()
    kept = [library.enabled for library in libraries]
    fast = backends.mha.get_fastpath_enabled()
    try:
        backends.mha.set_fastpath_enabled(False)
        for library in libraries:
            library.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        backends.mha.set_fastpath_enabled(fast)
        for library, enabled in zip(libraries, kept, strict=True):
            library.enabled = enabled
