"""Protocols that look at the images again: a linear layer on random crops, and fine-tuning.

De Plaen et al. 2026, "MULAN", appendices A and B; He et al. 2022, "MAE", table 9, for transformers. Where the papers
are silent: linear layers start at zero; validation images choose, and the chosen network answers as it is after its
last step, without having learned from them.
"""

from __future__ import annotations

import copy
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyviews.backbones import Encoder, protect
from manyviews.data.loader import Loader
from manyviews.data.source import Source
from manyviews.errors import UserError
from manyviews.evaluation.features import SMALL, Chosen, encode, frozen, read_again
from manyviews.evaluation.linear import Standard
from manyviews.evaluation.task import Answer, ImageTask
from manyviews.progress import Update
from manyviews.schedules import WarmupCosine
from manyviews.types import Progress
from manyviews.views import Global, Strong, View, Views

LRS = (0.005, 0.01, 0.02, 0.05, 0.1)
EPOCHS = (30, 50)
BATCH = 1024

VIT_LRS = (5e-4, 1e-3, 2e-3)
"""Of 256 images: the 1e-3 of MAE's table 9, its half and its double, for it is adjusted to each set of images."""

_MOMENTUM = 0.9
_PART = 256  # images that go through a network at once: the paper's batches of 1024 are shared by four GPUs
_MEMORY = 4 * 2**30  # bytes of validation images that are held; more are read again for every setting
# Of modules from outside, which cannot say themselves what must not decay.
_TOKENS = re.compile(r"(^|\.)((cls|class|dist|reg|register|mask)_tokens?|pos(itional)?_embed(ding)?s?)$")


def linear_augmented(
    task: ImageTask, seed: int, *, epochs: int = 100, lr: float = 0.005, batch: int = 512, momentum: float = _MOMENTUM
) -> Answer:
    """A linear layer on standardized features of random crops and flips, by SGD; nothing is chosen (MULAN, A).

    Crops of 8 to 100 % of the image, mirrored half of the time, go through the frozen encoder anew in every epoch, in
    bfloat16 on a GPU. The standardization is that of the clean images. As nothing is chosen, validation images are
    training images too.

    Args:
        task: the problem.
        seed: of the order and the crops.
        epochs: passes over the images; the encoder sees each image that often.
        lr: learning rate, to zero by a cosine, per step.
        batch: images per step at most: an epoch is cut into equal batches.
        momentum: of SGD. The paper does not name it.
    """
    known = task.frozen
    standard = Standard.of(torch.cat([known.train_x, known.val_x]))
    head = _head(known.train_x.shape[1], known.classes, task.device)

    def logits(x: Tensor) -> Tensor:
        with frozen(task.encoder), _precision(task.device):
            found = task.encoder(x).float()
        return head(standard(found))  # outside of inference mode, whose tensors nothing can learn from

    crops = _Crops(task, task.known, torch.cat([known.train_y, known.val_y]), batch, seed)
    optimizer = torch.optim.SGD(head.parameters(), lr=lr, momentum=momentum)
    for done, steps in crops.descend(logits, optimizer, lr=lr, epochs=epochs):
        _tell(task.progress, done, steps, f"epoch {1 + (done - 1) // crops.steps_per_epoch} of {epochs}")
    with torch.no_grad():
        answer = head(standard(known.test_x))
    return Answer(_ranked(answer), {"lr": lr, "epochs": epochs}, [], {})


def semi_1(
    task: ImageTask, seed: int, *, lrs: tuple[float, ...] = LRS, epochs: tuple[int, ...] = EPOCHS, batch: int = BATCH
) -> Answer:
    """Fine-tuning of the whole encoder on 1 % of the training labels, as many of each class (MULAN, B).

    See `finetune` and `balanced`. The settings are chosen with all validation labels, which are more than 1 %.
    """
    return finetune(task, seed, share=0.01, lrs=lrs, epochs=epochs, batch=batch)


def semi_10(
    task: ImageTask, seed: int, *, lrs: tuple[float, ...] = LRS, epochs: tuple[int, ...] = EPOCHS, batch: int = BATCH
) -> Answer:
    """Fine-tuning of the whole encoder on 10 % of the training labels, as many of each class (MULAN, B).

    See `finetune` and `balanced`.
    """
    return finetune(task, seed, share=0.1, lrs=lrs, epochs=epochs, batch=batch)


def finetune_vit(
    task: ImageTask,
    seed: int,
    *,
    lrs: tuple[float, ...] = VIT_LRS,
    epochs: tuple[int, ...] = (100,),
    batch: int = BATCH,
    share: float = 1.0,
    weight_decay: float = 0.05,
    layer_decay: float = 0.75,
    warmup: float = 5,
    randaugment: int = 2,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    smoothing: float = 0.1,
    drop_path: float = 0.1,
) -> Answer:
    """Fine-tuning of a transformer: AdamW, rates that fall with depth, mixup, CutMix, drop path (MAE, table 9).

    See `finetune`. Learning rates are of 256 images. These are the settings for ViT-B; larger ones take 50 epochs and
    more drop path. For ViT-B the authors' code has layer decay 0.65 at rate 5e-4, and so has BEiT (Bao et al. 2021),
    which warms up for 20 epochs. The paper averages the patches; here the features are those of the encoder as it is.
    Sets of some thousand images want smaller batches, or there are few steps.
    """
    return finetune(
        task,
        seed,
        lrs=lrs,
        epochs=epochs,
        batch=batch,
        share=share,
        optimizer="adamw",
        lr_scaling="linear",
        weight_decay=weight_decay,
        layer_decay=layer_decay,
        warmup=warmup,
        randaugment=randaugment,
        mixup=mixup,
        cutmix=cutmix,
        smoothing=smoothing,
        drop_path=drop_path,
    )


def finetune(
    task: ImageTask,
    seed: int,
    *,
    lrs: tuple[float, ...] = LRS,
    epochs: tuple[int, ...] = EPOCHS,
    batch: int = BATCH,
    share: float = 1.0,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    lr_scaling: Literal["constant", "linear"] = "constant",
    weight_decay: float = 0.0,
    layer_decay: float = 1.0,
    warmup: float = 0.0,
    randaugment: int = 0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    smoothing: float = 0.0,
    drop_path: float = 0.0,
) -> Answer:
    """Fine-tuning of the whole encoder on all training labels; settings chosen on validation images (MULAN, B).

    A copy of the encoder and a linear layer on its features learn from random crops (8 to 100 % of the image) and
    flips by SGD with Nesterov momentum 0.9, without weight decay, dropout or drop path; cosine to zero per step. Each
    learning rate is tried with each number of epochs, all with the same crops in the same order; the first best on the
    clean validation images answers. (The paper names the best on the test images.) The other arguments are what
    transformers want: see `finetune_vit`.

    BatchNorm learns with the statistics of up to 256 images and answers with running ones. What requires no gradient in
    the encoder does not learn. On GPUs that have it in hardware the forward pass is in bfloat16, answers in float32.

    Args:
        task: the problem.
        seed: of the subset, the order, the crops and all other noise.
        lrs: learning rates to try.
        epochs: passes over the images to try.
        batch: images per step at most: an epoch is cut into equal batches.
        share: of the training labels to learn from: see `balanced`.
        optimizer: "sgd", or "adamw" with betas 0.9 and 0.999.
        lr_scaling: "linear" multiplies the learning rates by the images of a batch / 256 (Goyal et al. 2017).
        weight_decay: of matrices and kernels, not of biases, norms, positions and class tokens.
        layer_decay: factor on the learning rate from one layer to the one below it (Clark et al. 2020), from 1 at the
            linear layer down to the stem. Layers are timm's: the blocks of transformers and ResNets.
        warmup: epochs in which the learning rate grows linearly; a tenth of the run if that is shorter.
        randaugment: operations of RandAugment on each crop, of random severity: see `Strong`. The papers' are of one
            severity, 9 of 10.
        mixup: alpha of mixup (Zhang et al. 2018): images and labels are blended with the next image's by a weight from
            Beta(alpha, alpha), the same for up to 256 images.
        cutmix: alpha of CutMix (Yun et al. 2019): a box is the next image's. With mixup too, either is as likely.
        smoothing: share of each label that is spread over all classes.
        drop_path: probability with which the last block's residual branches are left out; the first one's stay, and it
            grows linearly between. Other noise that the encoder may have learned with is off.

    Raises:
        UserError: `layer_decay` of an encoder whose layers timm does not know, `drop_path` of one without branches.
    """
    rows = torch.arange(len(task.frozen.train_y))
    if share < 1:
        rows = balanced(task.known.ids[: len(rows)], task.frozen.train_y.cpu(), share, seed)
    known, y = task.known.subset(rows.numpy()), task.frozen.train_y[rows.to(task.device)]
    crops = _Crops(task, known, y, batch, seed, randaugment)
    held_out = task.known.subset(range(len(task.frozen.train_y), len(task.known)))
    validation = _again(held_out, task.size)
    mix = _mixing(mixup, cutmix, task.frozen.classes)

    settings = [(lr, length) for length in epochs for lr in lrs]
    done, total = 0, crops.steps_per_epoch * sum(length for _, length in settings)
    tried: list[tuple[dict[str, float], float]] = []
    best = -1.0
    for lr, length in settings:
        model = _copy(task, drop_path)
        groups = _groups(model, weight_decay, layer_decay)
        rate = lr * crops.batch / 256 if lr_scaling == "linear" else lr
        steps = crops.descend(
            partial(_forward, model, task.device),
            _optimizer(optimizer, groups, rate, task.device),
            lr=rate,
            epochs=length,
            warmup=warmup,
            mix=mix,
            smoothing=smoothing,
        )
        for step, _ in steps:
            epoch = 1 + (step - 1) // crops.steps_per_epoch
            _tell(task.progress, done + step, total, f"lr {lr:g}, epoch {epoch} of {length}")
        done += length * crops.steps_per_epoch
        accuracy = _accuracy(_logits(model, validation(), task), task.frozen.val_y)
        tried.append(({"lr": lr, "epochs": length}, accuracy))
        if accuracy > best:
            best, setting, answerer = accuracy, tried[-1][0], model
    answer = _logits(answerer, read_again(task.asked, task.size), task)
    return Answer(_ranked(answer), setting | {"images": len(rows)}, tried, {})


def balanced(ids: Sequence[str], y: Tensor, share: float, seed: int) -> Tensor:
    """Rows (int64, ascending) of about `share` of the items: as many of each class, and at least one.

    `share * n / classes` of each class, rounded; fewer where a class has fewer. They are those whose names have the
    smallest hashes, so a subset does not depend on the items' order, and a larger share contains a smaller one.

    Args:
        ids: the items' stable names.
        y: int64, `n`, their classes.
        share: in (0, 1].
        seed: another one gives another subset.
    """
    names = (f"{seed}:{unicodedata.normalize('NFC', name)}".encode("utf-8", "surrogateescape") for name in ids)
    place = np.array([int.from_bytes(blake2b(name, digest_size=8).digest(), "big") for name in names], np.uint64)
    classes = y.numpy()
    order = np.lexsort((place, classes))
    _, first, count = np.unique(classes[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, count)  # within the class
    most = max(1, round(share * len(order) / len(first)))
    return torch.from_numpy(np.sort(order[rank < most]))


_Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of images, `b 3 h w`, and labels, int64 `b`, new images and labels: the same, or float32 `b classes`."""


def _unmixed(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x, y


class _Crops:
    """Labeled images, decoded once if they fit into memory, of which crops are made on the device in every step."""

    def __init__(self, task: ImageTask, source: Source, y: Tensor, batch: int, seed: int, randaugment: int = 0) -> None:
        size, n = task.size, len(source)
        canvas = size if size <= SMALL else int(size * 256 / 224)  # as large as the test images are before their crop
        # Equal batches: a last one of few images would spoil BatchNorm, and leaving it out would cost small sets much.
        self._loader = Loader(source, canvas, n // math.ceil(n / batch), seed=seed, device=task.device)
        self._task, self._y, self._seed = task, y, seed
        self._kind: View = Global(1, size=size, area=(0.08, 1.0), color=None, flip=0.5)
        if randaugment:
            self._kind = Strong(1, size, (0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, operations=randaugment, hole=None)
        self.steps_per_epoch, self.batch = self._loader.steps_per_epoch, self._loader.batch

    def descend(
        self,
        logits: Callable[[Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        lr: float,
        epochs: int,
        warmup: float = 0.0,
        mix: _Mix = _unmixed,
        smoothing: float = 0.0,
    ) -> Iterator[tuple[int, int]]:
        """Minimize the cross-entropy of `logits`, a function of images.

        Groups of the optimizer may have an `lr_scale`, a factor on the learning rate.

        Yields:
            after every step, how many are done, and of how many.
        """
        task, steps = self._task, epochs * self.steps_per_epoch
        schedule, step = WarmupCosine(lr, warmup), 0
        for epoch in range(epochs):
            for canvases in self._loader.batches(epoch):
                now = schedule(Progress(step, steps, self.steps_per_epoch))
                for group in optimizer.param_groups:
                    group["lr"] = now * group.get("lr_scale", 1.0)
                optimizer.zero_grad(set_to_none=True)
                with _noise(f"{self._seed} {step}", task.device):
                    for part in canvases.to(task.device).chunk(math.ceil(len(canvases) / _PART)):
                        x = Views(part, (self._kind,), self._seed, epoch, task.mean, task.std)[self._kind.name, 0]
                        x, y = mix(x, self._y[part.index])
                        loss = F.cross_entropy(logits(x), y, label_smoothing=smoothing, reduction="sum")
                        (loss / len(canvases)).backward()
                optimizer.step()
                step += 1
                yield step, steps


def _mixing(mixup: float, cutmix: float, classes: int) -> _Mix:
    """torchvision's, which draws from torch's generator and takes batches of any size; timm's does neither."""
    if not mixup and not cutmix:
        return _unmixed
    from torchvision.transforms import v2

    ways = [kind(alpha=a, num_classes=classes) for kind, a in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if a]
    return v2.RandomChoice(ways)


@contextmanager
def _noise(key: str, device: torch.device) -> Iterator[None]:
    """What is drawn from the global generators depends on `key` alone, and they are afterwards as they were."""
    seed = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _copy(task: ImageTask, drop_path: float) -> nn.Sequential:
    """The encoder with a linear layer on its features, ready to learn: only BatchNorm and drop path are in training."""
    noisy: tuple[type[nn.Module], ...] = (nn.modules.batchnorm._BatchNorm,)
    if drop_path:
        from timm.layers import DropPath

        encoder = _dropping(task.encoder, drop_path).to(task.device)
        noisy += (DropPath,)
    else:
        encoder = copy.deepcopy(task.encoder)
    encoder = encoder.to(memory_format=torch.channels_last).eval()
    protect(encoder)
    for module in encoder.modules():
        if isinstance(module, noisy):
            module.train()
    return nn.Sequential(encoder, _head(task.frozen.train_x.shape[1], task.frozen.classes, task.device))


def _dropping(encoder: nn.Module, rate: float) -> nn.Module:
    """A copy with another rate of drop path, which timm builds into a model: on the CPU, in any mode."""
    from timm.layers import DropPath

    if isinstance(encoder, Chosen):
        return Chosen(_dropping(encoder.encoder, rate), encoder.kind)  # type: ignore[arg-type]
    if isinstance(encoder, Encoder):
        with torch.random.fork_rng([]):
            made = Encoder.from_spec(encoder.spec | {"drop_path_rate": rate})
        made.load_state_dict(encoder.state_dict())
        for new, old in zip(made.parameters(), encoder.parameters(), strict=True):
            new.requires_grad_(old.requires_grad)
        if any(isinstance(module, DropPath) for module in made.modules()):
            return made
    raise UserError(f"{_name(encoder)} has no residual branches that timm could drop: set drop_path to 0.")


def _groups(model: nn.Sequential, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Groups of all that learns, with the `weight_decay` and, where timm knows the layers, the `lr_scale` of each."""
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    encoder, head = model
    inner = encoder.encoder if isinstance(encoder, Chosen) else encoder
    body: Any = inner.model if isinstance(inner, Encoder) else inner
    if not hasattr(body, "group_matcher"):
        if layer_decay != 1:
            raise UserError(f"{_name(inner)} does not say what its layers are: set layer_decay to 1.")
        tokens = [name for name, _ in model.named_parameters() if _TOKENS.search(name)]
        return param_groups_weight_decay(model, weight_decay, no_weight_decay_list=tokens)
    exempt = body.no_weight_decay() if hasattr(body, "no_weight_decay") else ()
    # As long as it is a part of the body, it is to timm what a classifier is: the layer above all others.
    body.add_module("_head", head)
    try:
        return param_groups_layer_decay(body, weight_decay, exempt, layer_decay=layer_decay)
    finally:
        del body._head


def _name(encoder: nn.Module) -> str:
    """The backbone's if it has one."""
    return getattr(encoder, "name", type(encoder).__name__)


def _optimizer(name: str, groups: list[dict[str, Any]], lr: float, device: torch.device) -> torch.optim.Optimizer:
    fused = device.type in ("cpu", "cuda")
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=_MOMENTUM, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, lr=lr, fused=fused)


def _head(d: int, classes: int, device: torch.device) -> nn.Linear:
    head = nn.utils.skip_init(nn.Linear, d, classes, device=device)  # the global random state stays as it is
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _forward(model: nn.Module, device: torch.device, x: Tensor) -> Tensor:
    with _precision(device):
        found = model(x)
    return found.float()


def _precision(device: torch.device) -> torch.autocast:
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def _again(source: Source, size: int) -> Callable[[], Iterable[Tensor]]:
    """`read_again`, as often as it is called: from memory if it holds the images."""
    if len(source) * 3 * size**2 > _MEMORY:
        return lambda: read_again(source, size)
    held = list(read_again(source, size))
    return lambda: held


def _logits(model: nn.Module, batches: Iterable[Tensor], task: ImageTask) -> Tensor:
    """In exact float32, `n classes`."""
    return torch.cat([encode(model, pixels, mean=task.mean, std=task.std, device=task.device) for pixels in batches])


def _accuracy(logits: Tensor, y: Tensor) -> float:
    """In [0, 1]; a network that diverged predicts nothing."""
    right = (logits.argmax(1) == y) & logits.isfinite().all(1)
    return right.double().mean().item()


def _ranked(logits: Tensor) -> Tensor:
    return logits.argsort(1, descending=True)[:, :5]


def _tell(progress: Update | None, done: int, total: int, note: str) -> None:
    if progress is not None:
        progress(done, total, note)
