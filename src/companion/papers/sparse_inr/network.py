"""The network with sines, and what keeps its phases exact."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from companion.checks import generators, tensors, whole
from companion.sparsity import check_mask, full_precision

Params = dict[str, Tensor]
OVERSHOOT = 0.5  # beyond [0, 1], of resampled pictures: more is of another range, such as 0 to 255


class Siren(nn.Module):
    """A multilayer perceptron with sines: h <- sin(omega_0 (W h + b)), linear at the end.

    It is made in float32 whatever PyTorch's default, as `pixel_grid` is; `double()` changes it.

    First layer: weights and biases uniform in +-1/in_features. Later layers, the last included,
    weights and biases uniform in +-sqrt(6 / fan-in) / omega_0.

    Args:
        in_features: coordinates a point.
        hidden_features: units a sine layer.
        hidden_layers: number of sine layers, the first included.
        out_features: channels.
        omega_0: frequency, above 0.
        generator: draws the weights.

    Raises:
        ValueError: for sizes below 1 (hidden_layers: below 0) and an omega_0 that is not positive.

    References:
        Sitzmann et al. (2020).

    Examples:
        >>> Siren(2, 8, 3, 1, 30.0)(pixel_grid(4, 4)).shape
        torch.Size([16, 1])
    """

    omega_0: Tensor

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        hidden_layers: int,
        out_features: int,
        omega_0: float,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "in_features": in_features,
            "hidden_features": hidden_features,
            "out_features": out_features,
        }
        whole(1, **sizes)
        whole(0, hidden_layers=hidden_layers)
        generators(generator=generator)
        if not 0 < omega_0 < math.inf:
            raise ValueError(f"omega_0 = {omega_0!r}: expected a positive number")
        widths = [in_features, *[hidden_features] * hidden_layers, out_features]
        self.layers = nn.ModuleList()
        for number, (fan_in, fan_out) in enumerate(pairwise(widths)):
            bound = 1 / fan_in if number == 0 else math.sqrt(6 / fan_in) / omega_0
            layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=torch.float32)
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
            self.layers.append(layer)
        self.register_buffer("omega_0", torch.tensor(float(omega_0), dtype=torch.float32))

    def forward(self, coords: Tensor) -> Tensor:
        return siren({**dict(self.named_parameters()), "omega_0": self.omega_0}, coords)


def siren_params(
    in_features: int,
    hidden_features: int,
    hidden_layers: int,
    out_features: int,
    omega_0: float,
    *,
    generator: torch.Generator | None = None,
) -> Params:
    """A freshly drawn `Siren` as a dictionary (arguments as there), float32 on the CPU.

    Args:
        in_features: coordinates a point.
        hidden_features: units a sine layer.
        hidden_layers: sine layers, the first included.
        out_features: channels.
        omega_0: frequency, above 0.
        generator: draws the weights, on the CPU; None: PyTorch's own.
    """
    sizes = in_features, hidden_features, hidden_layers, out_features
    drawn = Siren(*sizes, omega_0, generator=generator)
    return {name: value.detach() for name, value in drawn.state_dict().items()}


def siren(params: Mapping[str, Tensor], coords: Tensor, masks: Mapping[str, Tensor] | None = None):
    """Evaluate a network at points: (points, in) -> (points, out), no offset, no clamp.

    Computes sin((omega_0 W) h + omega_0 b): scaling the small matrix saves a pass over the large
    activations, and over their derivatives.

    Raises:
        ValueError: for a module in place of its parameters.
    """
    check_params(params)
    masks = masks or {}
    omega_0 = params["omega_0"]
    weights = [name for name in params if name.endswith(".weight")]
    h = coords
    for number, name in enumerate(weights):
        b = params[name.removesuffix("weight") + "bias"]
        W = params[name] * masks[name] if name in masks else params[name]
        if number < len(weights) - 1:  # eq. (4.1)
            h = linear(h, omega_0 * W, omega_0 * b)
            h = torch.sin(h)
        else:
            h = linear(h, W, b)
    return h


def pixel_grid(height: int, width: int) -> Tensor:
    """Coordinates of a picture's pixels, (height * width, 2), rows first, end points at -1 and 1.

    In float32.

    Examples:
        >>> pixel_grid(2, 3)[:4].tolist()
        [[-1.0, -1.0], [-1.0, 0.0], [-1.0, 1.0], [1.0, -1.0]]
    """
    rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float32) for n in (height, width))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).view(-1, 2)


class OblongSignals(Tensor):
    """Signals of pictures that are not square: whatever is made of them, it is no square's.

    A picture of 8 x 32 pixels has as many points as one of 16 x 16.
    """

    def __deepcopy__(self, memo: dict) -> OblongSignals:
        # Tensor's own refuses subclasses whose new_empty is a plain tensor
        copied = copy.deepcopy(self.as_subclass(Tensor), memo).as_subclass(OblongSignals)
        memo[id(self)] = copied
        return copied


torch.serialization.add_safe_globals([OblongSignals])  # so that torch.load reads what was saved


def as_targets(images: Tensor) -> Tensor:
    """Pictures (n, channels, height, width) as signals (n, height * width, channels).

    Those of pictures that are not square are `OblongSignals`, which are fitted with coords only.

    Raises:
        ValueError: for another shape.

    Examples:
        >>> as_targets(torch.zeros(5, 3, 4, 4)).shape
        torch.Size([5, 16, 3])
    """
    tensors(images=images)
    if images.dim() != 4:
        raise ValueError(
            f"images: shape {tuple(images.shape)}, expected (pictures, channels, height, width)"
        )
    signals = images.flatten(2).transpose(1, 2)
    square = images.shape[2] == images.shape[3]
    return signals if square else signals.as_subclass(OblongSignals)


def as_images(values: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `as_targets`."""
    return values.as_subclass(Tensor).transpose(1, 2).unflatten(2, (height, width))


@contextmanager
def strict_float32() -> Iterator[None]:
    """Full float32 inside the block: no TF32, no bf16, no autocast.

    Phases reach omega_0 radians, a hundred and more. TF32 and bf16 round operands by up to one
    part in 2^11 and 2^8: of such a phase 0.05 and 0.4 radians.
    """
    with full_precision():
        yield


def ordinary(tensor: Tensor) -> Tensor:
    """A copy of what was made in inference mode: it cannot be saved for a backward pass."""
    return tensor.clone() if tensor.is_inference() else tensor


def check_params(params: Mapping[str, Tensor]) -> None:
    """Raise ValueError for what is no dictionary of tensors, such as a module."""
    if not isinstance(params, Mapping):
        how = ": net.state_dict()" if isinstance(params, nn.Module) else ""
        raise ValueError(
            f"params: {type(params).__name__}, expected a dictionary of tensors as siren_params "
            f"gives{how}"
        )


def checked(
    params: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None
) -> tuple[Params, Tensor]:
    """The trainable tensors, and omega_0; refuses low precision and masks that do not fit.

    Raises:
        ValueError: for parameters without omega_0 or of low precision, and masks that do not fit.
    """
    check_params(params)
    if "omega_0" not in params:
        raise ValueError("params: expected an entry 'omega_0'")
    theta = {name: value for name, value in params.items() if name != "omega_0"}
    for name, value in theta.items():
        if value.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"params: {name!r} is {value.dtype}, expected float32 or float64 (sines of large phases)"
            )
    check_masks(masks or {}, theta)
    return theta, params["omega_0"]


def check_masks(masks: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> None:
    """Raise ValueError for masks of nothing, not boolean or of another shape than the network's.

    Raises:
        ValueError: for masks that do not fit.
    """
    check_params(params)
    known = {name: value for name, value in params.items() if name != "omega_0"}
    for name, mask in masks.items():
        check_mask(name, mask, known)


def signals_at(
    coords: Tensor | None, targets: Tensor, params: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Points and values in the network's precision: the given points, or a square's pixel grid.

    Raises:
        ValueError: for signals of another shape, of integers, or outside [0, 1] by more than
            `OVERSHOOT`, and for points that do not fit or have to be given.
    """
    tensors(targets=targets)
    if targets.dim() != 3 or targets.shape[0] < 1 or targets.shape[1] < 1:
        raise ValueError(
            f"targets: shape {tuple(targets.shape)}, expected (pictures, points, channels)"
        )
    check_values(OVERSHOOT, targets=targets)
    if coords is None:
        side = math.isqrt(targets.shape[1])
        if side * side != targets.shape[1] or isinstance(targets, OblongSignals):
            raise ValueError(
                f"coords: {targets.shape[1]} points are no square picture; give coords"
            )
        coords = pixel_grid(side, side)
    tensors(coords=coords)
    if coords.dim() != 2:
        raise ValueError(f"coords: shape {tuple(coords.shape)}, expected (points, in)")
    if len(coords) != targets.shape[1]:
        raise ValueError(f"coords: {len(coords)} points, but targets has {targets.shape[1]}")
    check_points(params, coords=coords)
    like = params["omega_0"]
    return coords.detach().to(like), targets.as_subclass(Tensor).detach().to(like)


def check_values(beyond: float, **signals: Tensor) -> None:
    """Raise ValueError for values that are not floating-point, or further than that from [0, 1]."""
    for name, values in signals.items():
        if not values.is_floating_point():
            raise ValueError(f"{name}: {values.dtype}, expected floating-point values in [0, 1]")
        low, high = (float(end) for end in torch.aminmax(values.as_subclass(Tensor).detach()))
        slack = beyond + 1e-5  # of rounding, in resampled images
        if not (low >= -slack and high <= 1 + slack):
            allowed = f", or at most {beyond:g} beyond it, as resampling overshoots"
            raise ValueError(
                f"{name}: values from {low:.6g} to {high:.6g}, expected [0, 1]"
                + (allowed if beyond else f"; where resampling overshoots, {name}.clamp(0, 1)")
            )


def check_points(params: Mapping[str, Tensor], **points: Tensor) -> None:
    """Raise ValueError for points that have not as many coordinates as the network's inputs.

    params: of one network or, with a leading dimension, of several.
    """
    check_params(params)
    inputs = next(value for name, value in params.items() if name.endswith(".weight")).shape[-1]
    for name, coords in points.items():
        if coords.dim() < 1 or coords.shape[-1] != inputs:
            raise ValueError(
                f"{name}: shape {tuple(coords.shape)}, expected (points, {inputs}), the "
                "network's inputs"
            )
