"""A pretend GPU: tensors with real values, kept on the CPU, that obey a GPU's rules about devices.

    python tests/pretend_gpu.py [--no-float64] [--out FILE] SCRIPT ...

runs exported chapters (`companion record STEM --name x --script -p device cuda`), each in a
process of its own, and writes a list of reports as JSON: how it ended and where it broke off,
waits, uploads and kernel launches, and the waits inside training loops, each by call site.

What is modelled. A tensor that was put on the pretend GPU says that it is there, and every
operator that it meets raises where CUDA would: operands on two devices (a CPU operand with no
dimensions is allowed, and so are CPU indices into a GPU's tensor), a CPU generator, `numpy()`.
With `--no-float64` it is Apple's MPS in that it refuses double precision.
A *wait* is where the program needs a value that the GPU has not computed yet: `.item()`, `if`,
`.cpu()`, `.tolist()`, indexing with a mask, `nonzero`. An *upload* is a copy to the GPU without
`non_blocking=True`, which waits just the same. A *training loop* is what lies between two steps
of one optimiser of `torch.optim`.

What it cannot see: kernels (their speed, their rounding, those that exist for one device only,
bf16 and autocast, which is off), Warp, code that asks for `device.type` (it is "pretend", not
"cuda" or "mps"), streams and graphs, memory, several GPUs, a fork while the GPU is in use. It
raises for in-place operators that change a shape, and for most recurrent layers: not modelled.

The device is made of names of `torch.utils.backend_registration` that may go: `AVAILABLE` says
whether this torch has them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import multiprocessing.context
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode

try:
    from torch.utils.backend_registration import (
        _DummyBackendModule,
        _setup_privateuseone_for_python_backend,
    )

    AVAILABLE = True
except ImportError:  # another torch
    _DummyBackendModule, AVAILABLE = object, False

NAME = "pretend"
CPU = torch.device("cpu")
HERE = Path(__file__).resolve()
# what takes long to import and several chapters want
SHARED = (
    "matplotlib.pyplot", "scipy.optimize", "scipy.stats", "skimage.filters", "sklearn.datasets",
    "sympy", "timm", "torch._dynamo", "tqdm",
)  # fmt: skip

# operators whose result, or its size, the program needs at once
WAITING = frozenset(
    "aten::" + name
    for name in (
        "_linalg_check_errors", "_local_scalar_dense", "_to_sparse", "_unique2", "bincount", "equal",
        "histc", "is_nonzero", "masked_select", "nonzero", "unique_consecutive", "unique_dim",
    )
)  # fmt: skip
INDEXING = frozenset(
    "aten::" + name
    for name in ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_")
)
# operators that may mix devices
COPYING = frozenset({"aten::copy_", "aten::_to_copy", "aten::set_", "aten::lift_fresh"})
# operators that do not take a CPU operand without dimensions either
STRICT = frozenset(
    "aten::" + name
    for name in (
        "addmm", "baddbmm", "bmm", "cat", "convolution", "dot", "gather", "index_select", "linear",
        "mm", "mv", "scatter", "stack",
    )
)  # fmt: skip
RESHAPING = frozenset(
    "aten::" + name
    for name in ("resize_", "squeeze_", "swapaxes_", "t_", "transpose_", "unsqueeze_")
)


SIMPLE = frozenset({bool, float, int, str, torch.dtype, torch.Size, type(None)})
_needs_no_check: dict[object, bool] = {}  # by operator


class MixedDevicesError(RuntimeError):
    """Raised where CUDA says that it expected all tensors on the same device."""


class Counts:
    """What a program did on the pretend GPU.

    waits, uploads: by (call site, operator). launches: operators. training: waits and uploads
    between two steps of one optimiser. steps: such pairs of steps.
    """

    def __init__(self) -> None:
        self.waits: Counter = Counter()
        self.uploads: Counter = Counter()
        self.training: Counter = Counter()
        self.launches = self.steps = 0
        self._pending: Counter = Counter()
        self._last: object = None

    def wait(self, what: str) -> None:
        self._count(self.waits, what)

    def upload(self, what: str) -> None:
        self._count(self.uploads, what)

    def _count(self, kind: Counter, what: str) -> None:
        where = (call_site(), what)
        kind[where] += 1
        self._pending[where] += 1

    def step(self, optimizer: object, *_: object) -> None:
        """Called after every step of every optimiser."""
        if optimizer is self._last:
            self.training += self._pending
            self.steps += 1
        self._last = optimizer
        self._pending.clear()

    def report(self) -> dict[str, object]:
        def listed(kind: Counter) -> list[list]:
            return [[*where, number] for where, number in kind.most_common()]

        return {
            "launches": self.launches,
            "training_steps": self.steps,
            "training": listed(self.training),
            "waits": listed(self.waits),
            "uploads": listed(self.uploads),
        }


counts = Counts()
float64 = True  # whether the device has it
_device = CPU  # the pretend GPU, once it is there


def call_site() -> str:
    """The innermost line outside torch and this file, and who called: "snip.py:12 score < run"."""
    frame, line, callers = sys._getframe(1), "", []
    while frame is not None:
        file = frame.f_code.co_filename
        if "site-packages" not in file and not file.startswith("<") and file != str(HERE):
            name = file.partition("/src/companion/")[2] or Path(file).name
            line = line or f"{name}:{frame.f_lineno} "
            callers.append(frame.f_code.co_name)
        frame = frame.f_back
    return line + " < ".join(callers)


class PretendTensor(torch.Tensor):
    """A tensor that says it is on the GPU; `held` has its values, on the CPU."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> PretendTensor:
        if not float64 and real.dtype in (torch.float64, torch.complex128):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't "
                "support float64. Please use float32 instead."
            )
        dense = real.layout == torch.strided
        made = torch.Tensor._make_wrapper_subclass(
            cls, real.size(), strides=real.stride() if dense else None,
            storage_offset=real.storage_offset() if dense else None,
            dtype=real.dtype, layout=real.layout, device=_device,
        )  # fmt: skip
        made.held = real
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run_operator(func, args, kwargs or {})

    @property
    def is_cuda(self) -> bool:
        return float64

    @property
    def is_mps(self) -> bool:
        return not float64

    def __repr__(self, **_: object) -> str:
        return f"PretendTensor(shape={tuple(self.shape)}, dtype={self.dtype})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    def __getitem__(self, index):
        return torch.Tensor.__getitem__(self, self._uploaded(index))

    def __setitem__(self, index, value) -> None:
        if isinstance(value, (bool, int, float)):  # stays on the CPU, as CUDA has it
            value = torch.tensor(value, dtype=self.dtype)
        torch.Tensor.__setitem__(self, self._uploaded(index), value)

    def _uploaded(self, index):
        # torch makes tensors of lists and arrays without asking __torch_dispatch__
        if isinstance(index, tuple):
            return tuple(map(self._uploaded, index))
        if isinstance(index, (list, np.ndarray)) and np.ndim(index):
            return torch.tensor(index).to(self.device)
        return index

    def new_tensor(self, data, *, dtype=None, device=None, requires_grad=False):
        return torch.tensor(
            data, dtype=dtype or self.dtype, device=device or self.device,
            requires_grad=requires_grad,
        )  # fmt: skip

    def tolist(self):
        return self.detach().cpu().tolist()

    def numpy(self, *, force: bool = False):
        if not force:
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
                "tensor to host memory first."
            )
        return self.detach().cpu().numpy()

    def __array__(self, *_: object, **__: object):
        return self.numpy()


_Generator = torch.Generator  # the name in torch is replaced later


class PretendGenerator(_Generator):
    """A generator of the pretend GPU.

    Torch hands operators a copy of another class: it is known by the seed that nobody sets.
    """

    made: ClassVar[dict[int, PretendGenerator]] = {}

    def __new__(cls):
        return super().__new__(cls)

    def __init__(self) -> None:
        self.held = _Generator()
        mark = 2**60 + len(self.made)
        super().manual_seed(mark)
        self.made[mark] = self

    @property
    def device(self) -> torch.device:
        return _device

    def manual_seed(self, seed: int) -> PretendGenerator:
        self.held.manual_seed(seed)
        return self


def is_pretend(device: object) -> bool:
    return device is not None and torch.device(device).type == NAME


def run_operator(func, args: tuple, kwargs: dict):
    """One operator as CUDA would run it: check, count, compute on the CPU, wrap the result."""
    counts.launches += 1
    if not kwargs and (plain := _plain_inputs(func, args)):
        return _mapped(func(*plain), PretendTensor)
    gpu: list[PretendTensor] = []
    cpu: list[torch.Tensor] = []
    generators: list[_Generator] = []

    def real(value):
        kind = type(value)
        if kind is PretendTensor:
            gpu.append(value)
            return value.held
        if kind is list or kind is tuple:
            return kind(map(real, value))
        if isinstance(value, torch.Tensor):
            cpu.append(value)
        elif isinstance(value, _Generator):
            value = PretendGenerator.made.get(value.initial_seed(), value)
            generators.append(value)
            return getattr(value, "held", value)
        elif kind is torch.device and value.type == NAME:
            return CPU
        return value

    plain = tuple(map(real, args))
    options = {name: real(value) for name, value in kwargs.items()}
    device = kwargs.get("device")
    to_gpu = is_pretend(device)
    result_on_gpu = to_gpu or (bool(gpu) and device is None)
    if "device" in options and to_gpu:
        options["device"] = CPU
    if options.get("pin_memory"):
        options["pin_memory"] = False
    name = func._schema.name

    for generator in generators:
        if result_on_gpu and not isinstance(generator, PretendGenerator):
            raise RuntimeError(
                f"Expected a 'cuda' device type for generator but found 'cpu' ({name})"
            )
    if name in INDEXING:
        _check_indexing(name, args)
    elif gpu and cpu and name not in COPYING:
        _check_devices(name, args, cpu)
    if gpu and (name in WAITING or (name == "aten::repeat_interleave" and len(args) == 1)):
        counts.wait(name)
    if name in ("aten::_to_copy", "aten::copy_"):
        _count_copy(name, args, kwargs, to_gpu)
    if name in RESHAPING:
        raise NotImplementedError(f"{name} in place: not modelled by the pretend GPU")

    found = func(*plain, **options)
    if not result_on_gpu or name == "aten::_local_scalar_dense":
        return found
    if name == "aten::_to_copy" and found is plain[0]:
        found = found.clone()
    if func._schema.is_mutable:
        # in place: the same tensor comes back
        known = {id(tensor.held): tensor for tensor in gpu}
        return _mapped(
            found, lambda held: known[id(held)] if id(held) in known else PretendTensor(held)
        )
    return _mapped(found, PretendTensor)


def _plain_inputs(func, args: tuple) -> list | None:
    """The inputs of an operator that needs no check, most of them; None for any other."""
    if func not in _needs_no_check:
        name = func._schema.name
        special = WAITING | INDEXING | COPYING | RESHAPING | {"aten::repeat_interleave"}
        _needs_no_check[func] = not func._schema.is_mutable and name not in special
    if not _needs_no_check[func]:
        return None
    inputs = []
    for value in args:
        kind = type(value)
        if kind is PretendTensor:
            value = value.held
        elif kind not in SIMPLE and not (kind is list and all(type(v) in SIMPLE for v in value)):
            return None
        inputs.append(value)
    return inputs


def _mapped(value, wrap):
    if isinstance(value, torch.Tensor):
        return wrap(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, wrap) for item in value)
    return value


def _check_devices(name: str, args: tuple, cpu: list[torch.Tensor]) -> None:
    large = next((tensor for tensor in cpu if tensor.dim()), None)
    if large is not None:
        raise MixedDevicesError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! ({name}, the one on the CPU has shape {tuple(large.shape)})"
        )
    if name in STRICT or (name.endswith("_") and not isinstance(args[0], PretendTensor)):
        raise MixedDevicesError(f"{name} does not take a tensor on the CPU and others on cuda:0")


def _check_indexing(name: str, args: tuple) -> None:
    target, indices = args[0], [index for index in args[1] if index is not None]
    if not isinstance(target, PretendTensor):
        raise MixedDevicesError(
            f"indices should be either on cpu or on the same device as the indexed tensor (cpu) ({name})"
        )
    masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
    value = args[2] if len(args) > 2 else None
    if value is not None and not isinstance(value, PretendTensor) and value.dim():
        raise MixedDevicesError(f"{name}: expected the value on cuda:0, it is on the CPU")
    # one number under one mask is filled in without asking how many places there are
    filled = value is not None and not isinstance(value, PretendTensor) and value.numel() == 1
    if masks and not (filled and len(masks) == 1 == len(indices)):
        counts.wait("mask as index")
    if any(not isinstance(index, PretendTensor) for index in indices):
        counts.upload("index on the CPU")


def _count_copy(name: str, args: tuple, kwargs: dict, to_gpu: bool) -> None:
    source = args[0] if name == "aten::_to_copy" else args[1]
    from_gpu = isinstance(source, PretendTensor)
    if name == "aten::copy_":
        to_gpu = isinstance(args[0], PretendTensor)
        blocking = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
    else:
        to_gpu = to_gpu or (from_gpu and kwargs.get("device") is None)
        blocking = not kwargs.get("non_blocking")
    if from_gpu and not to_gpu:
        counts.wait("to the CPU")
    elif to_gpu and not from_gpu and blocking and not (name == "aten::copy_" and not source.dim()):
        counts.upload("to the GPU")


class OnPretendGPU(TorchDispatchMode):
    """Sends what names the pretend GPU, or meets a tensor on it, to `run_operator`."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and guarding every call against it costs more

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if PretendTensor in types or is_pretend(kwargs.get("device")):
            return run_operator(func, args, kwargs)
        return func(*args, **kwargs)


class Backend(_DummyBackendModule):
    """What torch asks a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_autocast_enabled(self) -> bool:
        return False


def install(*, has_float64: bool = True) -> torch.device:
    """Put the pretend GPU into this process, for good, and return its device."""
    global float64, _device
    float64 = has_float64
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    _device = torch.device(NAME, 0)
    # a backward pass stays in its thread: a fork after one would not be allowed otherwise
    torch.autograd.set_multithreading_enabled(False)
    register_optimizer_step_post_hook(counts.step)
    torch.inference_mode = inference_mode
    _patch_modules()
    _patch_makers()
    _patch_autocast()
    _patch_gru()
    if has_float64:
        _patch_cuda()
    else:
        torch.backends.mps.is_available = lambda: True
    OnPretendGPU().__enter__()
    return _device


def inference_mode(mode=True):
    """As torch's, but for the tensors of inference, which wrappers cannot be."""
    if callable(mode):  # a decorator without arguments
        return torch.no_grad()(mode)
    return torch.no_grad() if mode else torch.enable_grad()


def _patch_modules() -> None:
    """`nn.Module.to` keeps its parameters, though they become tensors of another class."""
    real = torch.nn.Module._apply

    def apply(self, function, recurse=True):
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return real(self, function, recurse)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)

    torch.nn.Module._apply = apply


def _patch_makers() -> None:
    """Makers that copy to a device without asking __torch_dispatch__."""
    make, make_as = torch.tensor, torch.as_tensor

    def tensor(data, *, dtype=None, device=None, requires_grad=False, pin_memory=False):
        if isinstance(data, PretendTensor):
            made = data.detach().clone().to(dtype=dtype or data.dtype)
        else:
            made = make(data, dtype=dtype)
        made = made if device is None else made.to(device)
        return made.requires_grad_() if requires_grad else made

    def as_tensor(data, dtype=None, device=None):
        if not isinstance(data, torch.Tensor):
            data = make_as(data, dtype=dtype)
        return data.to(device=device or data.device, dtype=dtype or data.dtype)

    class AnyGenerator(type(_Generator)):
        def __instancecheck__(cls, instance) -> bool:
            return isinstance(instance, _Generator)

    class Generator(_Generator, metaclass=AnyGenerator):
        def __new__(cls, device="cpu"):
            return PretendGenerator() if is_pretend(device) else _Generator(device)

    torch.tensor, torch.as_tensor, torch.Generator = tensor, as_tensor, Generator


def _patch_autocast() -> None:
    real = torch.autocast

    class Autocast(real):
        def __init__(self, device_type, dtype=None, enabled=True, cache_enabled=None):
            on = enabled and device_type != NAME
            super().__init__("cpu" if device_type == NAME else device_type, dtype, on)

    torch.autocast = Autocast


def _patch_gru() -> None:
    """A GRU of one layer in one direction: the kernel is not made of operators."""
    from torch.nn.modules import rnn

    names = rnn._VF

    def gru(x, hx, params, has_biases, layers, dropout, train, bidirectional, batch_first):
        if not isinstance(x, PretendTensor):
            return names.gru(
                x, hx, params, has_biases, layers, dropout, train, bidirectional, batch_first
            )
        if layers != 1 or bidirectional or not has_biases:
            raise NotImplementedError("a GRU of another kind: not modelled by the pretend GPU")
        if not hx.is_contiguous():
            raise RuntimeError("rnn: hx is not contiguous")
        w, r, b, c = params
        state, states = hx[0], []
        inputs = torch.nn.functional.linear(x, w, b)
        for step in inputs.unbind(1 if batch_first else 0):
            from_x, from_h = step.chunk(3, 1), torch.addmm(c, state, r.T).chunk(3, 1)
            reset, update = ((from_x[i] + from_h[i]).sigmoid() for i in (0, 1))
            new = (from_x[2] + reset * from_h[2]).tanh()
            state = new + update * (state - new)
            states.append(state)
        return torch.stack(states, 1 if batch_first else 0), state[None]

    class Names:
        def __getattr__(self, name: str):
            return gru if name == "gru" else getattr(names, name)

    rnn._VF = Names()


def _patch_cuda() -> None:
    """torch.cuda as on a machine with one GPU; what cannot be done without one does nothing."""
    answers = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "get_device_name": "Pretend GPU", "is_bf16_supported": True, "max_memory_allocated": 0,
        "mem_get_info": (80 << 30, 80 << 30),
    }  # fmt: skip
    nothing = (
        "_lazy_init", "empty_cache", "manual_seed", "manual_seed_all", "reset_peak_memory_stats",
        "synchronize",
    )  # fmt: skip
    for name, answer in (answers | dict.fromkeys(nothing)).items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)


# ---------------------------------------------------------------- chapters


def _prepare_chapters(device: torch.device) -> None:
    """Let `device = "cuda"` (or "mps") mean the pretend GPU, and draw without Warp."""
    from matplotlib import pyplot

    from companion import device as devices
    from companion.runs import records

    pick = devices.pick_device

    def pick_device(name: str = "auto") -> torch.device:
        return device if name in ("auto", "cuda", "mps") else pick(name)

    devices.pick_device = pick_device
    # figures are made, of values that have left the GPU by then, but not drawn
    records.keep_figure = lambda *_: pyplot.close("all")
    from companion.papers.visual_compiler import raster

    raster._draw_with_warp = raster._draw_with_torch
    # workers are spawned where a GPU is in use: a server that has torch in memory is faster
    multiprocessing.set_forkserver_preload(["companion.papers.data_parallelism"])
    context = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: (
        ServerContext() if method == "spawn" else context(method)
    )


class ServerContext(multiprocessing.context.ForkServerContext):
    """Processes that a server forks, and that take the one that asked for their parent."""

    def Process(self, *, target, args=(), **options):
        wrapped = (os.getpid(), target, args)
        return super().Process(target=_as_child_of, args=wrapped, **options)


def _as_child_of(parent: int, target, args: tuple) -> None:
    os.getppid = lambda: parent
    target(*args)


_as_child_of.__module__ = HERE.stem  # where a worker finds it, whatever its main module is


def run_script(path: Path) -> dict[str, object]:
    """Run a script here and report what it did: `error` is "" if it ended."""
    start, error, where = time.process_time(), "", []
    try:
        code = compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True)
        exec(code, {"__name__": "__main__", "__file__": str(path)})
    except BaseException as problem:
        error = f"{type(problem).__module__}.{type(problem).__name__}: {problem}"[:500]
        where = [
            f"{frame.filename.partition('/src/companion/')[2] or Path(frame.filename).name}:"
            f"{frame.lineno} {frame.name}: {frame.line}"
            for frame in traceback.extract_tb(problem.__traceback__)
            if "site-packages" not in frame.filename and frame.filename != str(HERE)
        ]
    seconds = round(time.process_time() - start, 1)
    return {"script": path.name, "error": error, "where": where, "cpu_seconds": seconds} | (
        counts.report()
    )


def run_all(paths: list[Path], *, has_float64: bool) -> list[dict[str, object]]:
    """Run each script in a fork of this process, which has imported torch for all of them.

    What it records goes to SCRIPT.json beside it, what it prints to SCRIPT.log.
    """
    import matplotlib

    matplotlib.use("Agg")
    sys.modules["pretend_gpu"] = sys.modules[__name__]  # a script may import this module
    for name in SHARED:
        importlib.import_module(name)
    from companion.runs import chapters, records

    for stem in chapters.stems():
        importlib.import_module(f"companion.papers.{stem}")

    reports = []
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder) / "report.json"
            sys.stdout.flush()
            if (child := os.fork()) == 0:
                log = os.open(path.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
                os.dup2(log, 1)
                os.dup2(log, 2)
                os.environ[records.TARGET] = str(path.with_suffix(".json"))
                torch.set_num_threads(1)
                _prepare_chapters(install(has_float64=has_float64))
                answer.write_text(json.dumps(run_script(path)))
                sys.stdout.flush()
                os._exit(0)
            _, status = os.waitpid(child, 0)
            died = {"script": path.name, "error": f"died with status {status}"}
            reports.append(json.loads(answer.read_text()) if answer.exists() else died)
    return reports


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scripts", nargs="+", type=Path, metavar="SCRIPT")
    parser.add_argument("--no-float64", action="store_true", help="refuse float64, as MPS does")
    parser.add_argument("--out", type=Path, help="where the reports go; default: standard output")
    options = parser.parse_args(arguments)
    if not AVAILABLE:
        print(f"torch {torch.__version__} lacks what the pretend GPU is made of", file=sys.stderr)
        return 2
    reports = run_all(options.scripts, has_float64=not options.no_float64)
    text = json.dumps(reports, indent=1)
    if options.out:
        options.out.write_text(text)
    else:
        print(text)
    return 1 if any(report["error"] for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
