"""The only file that knows about ranks.

In a single process every function is the identity, or the plain local computation, so callers never ask how many
processes there are.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn import functional as F

from manyviews import launch, machine
from manyviews.errors import UserError

_BACKENDS = {"cuda": "cuda:nccl", "xpu": "xpu:xccl"}

T = TypeVar("T")
Module = TypeVar("Module", bound=torch.nn.Module)


def active() -> bool:
    """Whether this process belongs to a group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if active() else 1


def start() -> torch.device:
    """Join the process group that torchrun or SLURM describes, if there is one, and return this process's device.

    Raises:
        UserError: a process without a device of its own, several on an Apple GPU, or the others do not come.
    """
    device, found = machine.device(), launch.place()
    several = found is not None and found.world > 1
    local = 0 if found is None else found.local
    if several and device.type == "mps":
        raise UserError("PyTorch cannot connect processes on Apple's GPU: start one, or use --device cpu.")
    if device.type in _BACKENDS:
        kind = torch.cuda if device.type == "cuda" else torch.xpu
        if kind.device_count() == 1 and "SLURM_STEP_ID" in os.environ:
            local = 0  # SLURM may show each task its own GPU alone
        if local >= kind.device_count():
            raise UserError(
                f"Process {local} of this machine has no GPU of its own, as PyTorch sees {kind.device_count()}: "
                "start fewer processes, or let each see all."
            )
        device = torch.device(device.type, local)
        kind.set_device(device)
    if found is not None and several and not active():
        launch.announce(found)
        # Two backends: votes between processes go over the CPU, so that no step waits for its device.
        backend = _BACKENDS.get(device.type)
        try:
            dist.init_process_group(
                f"cpu:gloo,{backend}" if backend else "gloo", device_id=device if backend else None, **_meeting()
            )
        except dist.DistError as e:
            raise UserError(
                f"Process {found.rank} of {found.world} did not meet the others at {found.address[0]}, port "
                f"{found.address[1]} ({str(e).splitlines()[0]}): start all of them, and set MASTER_ADDR and "
                "MASTER_PORT if these are wrong."
            ) from None
        _PEERS[:] = collect((platform.node(), os.getpid()))
    return device


def _meeting() -> dict[str, Any]:
    """Where processes that torchrun started meet.

    It keeps one store over all its starts. A process that reads there where another listens, before that one has
    written it anew, would wait for one that is gone: so names begin with the number of the start.
    """
    if (start := os.environ.get("TORCHELASTIC_RESTART_COUNT")) is None:
        return {}
    store, rank, world = next(rendezvous("env://"))
    return {"store": PrefixStore(f"start {start}", store), "rank": rank, "world_size": world}


_PEERS: list[tuple[str, int]] = []
"""Machine and process number of each rank."""

_BROKEN = ("closed by peer", "reset by peer", "broken pipe", "connection refused", "timed out", "remote process exited")


def lost(error: BaseException) -> str | None:
    """If an error says that another process is gone, half a sentence that says which, as far as is known; else None."""
    text = str(error).lower()
    broken = isinstance(error, RuntimeError) and any(words in text for words in _BROKEN)
    if not active() or not (broken or isinstance(error, dist.DistError)):
        return None
    here = [r for r, (host, _) in enumerate(_PEERS) if host == platform.node() and r != rank()]
    deadline = time.monotonic() + 1.0
    while not (gone := [r for r in here if not _lives(_PEERS[r][1])]) and here and time.monotonic() < deadline:
        time.sleep(0.05)  # its connection ends before the process does
    if gone:
        named = " and ".join(str(r) for r in gone)
        return f"process {named} of {world_size()} {'has' if len(gone) == 1 else 'have'} ended"
    away = sorted({host for host, _ in _PEERS} - {platform.node()})
    if not away:
        return f"one of the {world_size()} processes does not answer"
    return f"a process on another machine ({', '.join(away[:3])}) has ended or cannot be reached"


def _lives(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE  # one that nobody has asked after yet
    except psutil.Error:
        return False


def stop() -> None:
    """Leave the process group."""
    if active():
        dist.destroy_process_group()
        _PEERS.clear()


class Waited:
    """Seconds that this process spent in collectives that make it wait: for the others, and for what travels."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic() - self._since


waited = Waited()
"""On a GPU, only votes and gathered objects: collectives of its tensors do not make the host wait."""


def _all_reduce(x: Tensor, op: Any = dist.ReduceOp.SUM) -> None:
    with waited:
        dist.all_reduce(x, op=op)


def _all_gather(x: Tensor) -> Tensor:
    x = x.contiguous()  # views are channels last in memory, which NCCL does not support
    out = [torch.empty_like(x) for _ in range(world_size())]
    with waited:
        dist.all_gather(out, x)
    return torch.cat(out)


class _Gather(torch.autograd.Function):
    """All-gather along the batch, whose backward pass sums the gradients that all ranks have for this rank's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _all_gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        _all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def gather(x: Tensor) -> Tensor:
    """`b ...` on every rank to `world*b ...`, in rank order, differentiable. Every rank must hold the same `b`.

    `mean_gradients` averages the loss over ranks. With it, the gradient of a loss that is computed from gathered rows
    equals the gradient in one process that holds the whole batch.
    """
    if world_size() == 1:
        return x
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _all_gather(x)
    gathered: Tensor = _Gather.apply(x)
    return gathered


def pass_on(x: Tensor) -> Callable[[], Tensor]:
    """Begin to send a tensor to the next rank, and return a function that waits for the previous rank's tensor.

    Every rank calls it, in the same order among its other collectives, with the same shape and dtype. The last rank
    sends to the first. `x` must not be written to until the wait is over. Without gradient.
    """
    if world_size() == 1:
        return lambda: x
    x = x.contiguous()
    received = torch.empty_like(x)
    # Both at once, so that no rank waits with sending until its neighbor has received.
    to_next = dist.P2POp(dist.isend, x, (rank() + 1) % world_size())
    from_previous = dist.P2POp(dist.irecv, received, (rank() - 1) % world_size())
    under_way = dist.batch_isend_irecv([to_next, from_previous])

    def wait() -> Tensor:
        with waited:
            for work in under_way:
                work.wait()
        return received

    return wait


def ring(x: Tensor) -> Iterator[Tensor]:
    """Every rank's tensor, one after the other: this rank's, then the previous rank's, and so on. Without gradient.

    The next tensor travels while this one is in use, so no rank ever holds them all. The tensors must not be written
    to, and every rank must take all of them.
    """
    held = x
    for _ in range(world_size() - 1):
        arrives = pass_on(held)
        yield held
        held = arrives()
    yield held


def mean(x: Tensor) -> Tensor:
    """The mean over ranks of a tensor without gradient; in one process the tensor itself."""
    return x if world_size() == 1 else total(x) / world_size()


def total(x: Tensor) -> Tensor:
    """The sum over ranks of a tensor without gradient; in one process the tensor itself."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    _all_reduce(x)
    return x


def mean_gradients(parameters: Iterable[torch.nn.Parameter], bucket: int = 2**24) -> None:
    """Average the gradients over the ranks, in buckets of about `bucket` elements.

    There is one reduction after the last loss term, and no hooks in the backward pass as in DistributedDataParallel: a
    step here has one backward pass per view, which does not reach the other views' predictors. A gradient that is
    missing on some rank counts as zero there.
    """
    if world_size() == 1:
        return
    # The backward pass has averaged the gradients of weights that are spread.
    trained = [p for p in parameters if p.requires_grad and not spread(p)]
    # A parameter that no rank used keeps grad None, so that weight decay does not move it.
    used = torch.tensor([p.grad is not None for p in trained], dtype=torch.int32)
    _all_reduce(used, op=dist.ReduceOp.MAX)
    grads = []
    for p, wanted in zip(trained, used.tolist(), strict=True):
        if wanted:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            grads.append(p.grad)
    start_at = 0
    while start_at < len(grads):
        stop_at, size = start_at, 0
        while stop_at < len(grads) and (size == 0 or size + grads[stop_at].numel() <= bucket):
            size += grads[stop_at].numel()
            stop_at += 1
        part = grads[start_at:stop_at]
        flat = torch.cat([g.reshape(-1) for g in part])
        _all_reduce(flat)
        flat /= world_size()
        for g, new in zip(part, flat.split([g.numel() for g in part]), strict=True):
            g.copy_(new.view_as(g))
        start_at = stop_at


def spread(x: object) -> bool:
    """Whether a tensor is cut along its first dimension, a part for each rank: see `engine.sharding`."""
    found = sys.modules.get("torch.distributed.tensor")  # which takes seconds to import, and few runs need
    return found is not None and isinstance(x, found.DTensor)


def own(x: Tensor) -> Tensor:
    """This rank's part of a tensor that is spread over the ranks, which shares its memory; else the tensor itself."""
    part: Tensor = x.detach().to_local() if spread(x) else x  # type: ignore[attr-defined]
    return part


def whole(x: Tensor) -> Tensor:
    """The whole of a tensor that is spread over the ranks, on every rank; else the tensor itself. All ranks call it."""
    found: Tensor = x.full_tensor() if spread(x) else x  # type: ignore[attr-defined]
    return found


def like(part: Tensor, x: Tensor) -> Tensor:
    """A tensor that is spread over the ranks as `x` is, of this rank's part; the part itself if `x` is not spread."""
    if not spread(x):
        return part
    kind: Any = x
    found: Tensor = type(kind.data).from_local(
        part, kind.device_mesh, kind.placements, run_check=False, shape=x.shape, stride=x.stride()
    )
    return found


@torch.no_grad()
def cut(source: Tensor, target: Tensor) -> None:
    """Overwrite a tensor, or this rank's part of one that is spread over the ranks, with the whole `source`."""
    part = own(target)
    if spread(target):
        pieces = source.chunk(world_size())  # fewer than ranks, if it has few rows
        source = pieces[rank()] if rank() < len(pieces) else source[:0]
    part.copy_(source)


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite each tensor with rank 0's, in place."""
    if world_size() > 1:
        for t in tensors:
            dist.broadcast(t, 0)


def share(x: T) -> T:
    """Rank 0's object, on every rank."""
    if world_size() == 1:
        return x
    box = [x]
    with waited:
        dist.broadcast_object_list(box, 0)
    return box[0]


def later() -> Callable[[T], T]:
    """`share` for an object that the first process takes long to find: the others wait as long as they live.

    Every process calls this before the work, and what it returns after it.
    """
    if world_size() == 1:
        return lambda x: x
    # A group of its own: elsewhere a process that waits for minutes waits for one that hangs.
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=365))

    def share_later(x: T) -> T:
        box = [x]
        dist.broadcast_object_list(box, 0, group=group)
        return box[0]

    return share_later


def to_first(x: Tensor) -> Tensor:
    """Rows of all ranks, in rank order, in the first process; elsewhere its own. Of any number, on the CPU, `n ...`."""
    if world_size() == 1:
        return x
    shapes = collect(x.shape if len(x) else None)
    if rank():
        if len(x):
            dist.send(x.contiguous(), 0)
        return x
    parts = [x] if len(x) else []
    for other, shape in enumerate(shapes):
        if other and shape is not None:
            parts.append(x.new_empty(shape))
            dist.recv(parts[-1], other)
    return torch.cat(parts) if parts else x


def collect(x: T) -> list[T]:
    """Every rank's object, on every rank."""
    if world_size() == 1:
        return [x]
    found: list[Any] = [None] * world_size()
    with waited:
        dist.all_gather_object(found, x)
    return found


def anywhere(yes: bool) -> bool:
    """Whether any rank says yes. This waits for no rank's device."""
    if world_size() == 1:
        return yes
    answer = torch.tensor(int(yes), dtype=torch.int32)
    _all_reduce(answer, op=dist.ReduceOp.MAX)
    return bool(answer)


def least(x: int) -> int:
    """The smallest of the ranks' numbers."""
    if world_size() == 1:
        return x
    found = torch.tensor(x)
    _all_reduce(found, op=dist.ReduceOp.MIN)
    return int(found)


def barrier() -> None:
    """Wait for all processes."""
    if active():
        dist.barrier()


def shuffle(x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """This rank's share of the whole batch in a random order, and the order, which `unshuffle` undoes.

    This is MoCo's shuffling BatchNorm. The order is the same on every rank and drawn from `seed`. Without gradient.
    """
    if world_size() == 1:
        return x, torch.empty(0)
    rows = gather(x.detach())
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    if x.is_cuda:
        order = order.pin_memory().to(x.device, non_blocking=True)  # without waiting for the device
    return rows[order].chunk(world_size())[rank()], order


def unshuffle(x: Tensor, order: Tensor) -> Tensor:
    """Rows computed from a shuffled batch, returned to the ranks and rows of their inputs."""
    if world_size() == 1:
        return x
    return gather(x.detach())[order.argsort()].chunk(world_size())[rank()]


class _Sum(torch.autograd.Function):
    """All-reduce whose gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        _all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        _all_reduce(grad)
        return grad


def add(x: Tensor) -> Tensor:
    """The sum over ranks, on every rank, differentiable: its gradients follow the rule of `gather`."""
    return x if world_size() == 1 else _Sum.apply(x)


class _Normalize(torch.autograd.Function):
    """BatchNorm with the statistics of the rows of all ranks; also returns the mean, the variance and their number.

    It calls PyTorch's own kernels for one process, each of which reads the input once and not once per operation.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own = torch.stack(torch.batch_norm_update_stats(x, None, None, 0.0))
        rows = own.new_full((1, own.shape[1]), x.numel() / x.shape[1])
        means, variances, counts = _all_gather(torch.cat([own, rows])[None]).unbind(1)
        n = counts.sum(0)
        mean = (counts / n * means).sum(0)
        var = (counts / n * (variances + (means - mean).square())).sum(0)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, var, n)
        ctx.mark_non_differentiable(mean, var, n)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var, n

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, var, n = ctx.saved_tensors
        scale = (var + ctx.eps).rsqrt()
        # First the gradient with sums over this rank's rows, then the difference that the sums of all ranks make.
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, scale, True, ctx.eps, [True, True, True]
        )
        sums = torch.stack([of_weight, of_bias])
        everyone = sums.clone()
        _all_reduce(everyone)
        off = (sums * (x.shape[1] / x.numel()) - everyone / n) * (weight * scale)
        of_x += F.batch_norm(x, mean, var, off[0], off[1], eps=ctx.eps)
        return of_x, of_weight, of_bias, None


class SyncBatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the rows of all ranks, on a CPU. PyTorch's own runs on accelerators only."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        weight, bias = (self.weight, self.bias) if self.affine else (x.new_ones(x.shape[1]), x.new_zeros(x.shape[1]))
        y, mean, var, n = _Normalize.apply(x, weight, bias, self.eps)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)  # type: ignore[arg-type]
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * n / (n - 1), momentum)
        result: Tensor = y.to(input.dtype)
        return result


def sync_batchnorm(module: Module, device: torch.device) -> Module:
    """The module with every BatchNorm replaced by one that shares its statistics between ranks."""
    if world_size() == 1:
        return module
    if device.type in _BACKENDS:
        from timm.layers.norm_act import convert_sync_batchnorm  # also converts timm's norm-and-activation layers

        converted: Module = convert_sync_batchnorm(module)
        return converted
    for child in module.modules():
        if isinstance(child, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            if type(child) not in (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d):
                raise UserError(
                    f"{type(child).__name__} cannot share its statistics between CPU processes: "
                    "use one process, or --set step.sync_batchnorm=false."
                )
            child.__class__ = SyncBatchNorm  # type: ignore[assignment]  # same parameters and buffers, another forward
    return module
