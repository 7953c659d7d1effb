"""Protocols that train on the images: a linear layer on random crops, and fine-tuning.

De Plaen et al. 2026, "MULAN", appendices A and B; He et al. 2022, "MAE", table 9, for transformers. Where the papers
are silent: linear layers start at zero; validation images choose, and the chosen network predicts as it is after its
last step, without having learned from them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyviews.adaptation import Full
from manyviews.adaptation.groups import Groups, by_decay, groups_by_name
from manyviews.backbones import Encoder, protect
from manyviews.errors import UserError
from manyviews.evaluation.contract import (
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Count,
    ImageProtocol,
    ImageTask,
    LearningRates,
    Prediction,
    Sees,
)
from manyviews.evaluation.crops import LabeledCrops, Mix, again, unmixed
from manyviews.evaluation.features import Chosen, encode, frozen, read_again
from manyviews.evaluation.linear import Standardizer, ranked
from manyviews.evaluation.subsets import balanced
from manyviews.views import Crop, Global, Strong

_MOMENTUM = 0.9


@dataclass(frozen=True)
class LinearAugmented(ImageProtocol):
    """A linear layer on standardized features of random crops and flips, by SGD; nothing is chosen (MULAN, A).

    Crops of 8 to 100 % of the image, mirrored half of the time, go through the frozen encoder anew in every epoch, in
    bfloat16 on a GPU. The standardization is that of the clean images. As nothing is chosen, validation images are
    training images too.

    Args:
        epochs: passes over the images; the encoder sees each image that often.
        lr: learning rate, to zero by a cosine, per step.
        batch: largest number of images per step: an epoch is cut into equal batches.
        momentum: momentum of SGD. The paper does not name it.
    """

    name = "linear_augmented"
    title = "linear probe on crops"
    seeded = True

    epochs: Count = 100
    lr: Annotated[float, POSITIVE] = 0.005
    batch: Count = 512
    momentum: Annotated[float, BELOW_ONE] = _MOMENTUM

    def run(self, task: ImageTask, seed: int) -> Prediction:
        known, epochs = task.frozen, self.epochs
        standard = Standardizer.of(known.trainval_x)
        head = _head(known.train_x.shape[1], known.classes, task.device)

        def logits(x: Tensor) -> Tensor:
            with frozen(task.encoder), _precision(task.device):
                found = task.encoder(x).float()
            return _tensor(head(standard(found)))  # outside of inference mode, whose tensors nothing can learn from

        crops = LabeledCrops(task, task.trainval, known.trainval_y, _crop(task.size), self.batch, seed)
        optimizer = torch.optim.SGD(head.parameters(), lr=self.lr, momentum=self.momentum)
        for done in crops.descend(logits, optimizer, lr=self.lr, epochs=epochs):
            epoch = 1 + (done - 1) // crops.steps_per_epoch
            task.tell(done, epochs * crops.steps_per_epoch, f"epoch {epoch} of {epochs}")
        with torch.no_grad():
            found = head(standard(known.test_x))
        return Prediction(ranked(found), {"lr": self.lr, "epochs": epochs}, [], {})


@dataclass(frozen=True)
class FineTune(ImageProtocol):
    """Fine-tuning of the whole encoder on all training labels; settings chosen on validation images (MULAN, B).

    A copy of the encoder and a linear layer on its features learn from random crops (8 to 100 % of the image) and
    flips by SGD with Nesterov momentum 0.9, without weight decay, dropout or drop path; cosine to zero per step. Each
    learning rate is tried with each number of epochs, all with the same crops in the same order; the first best on the
    clean validation images predicts. (The paper names the best on the test images.) The other settings are for
    transformers: see `FineTuneViT`.

    BatchNorm learns with the statistics of up to 256 images and predicts with running ones. Parameters with
    requires_grad=False stay frozen. On GPUs that have it in hardware the forward pass of training is in bfloat16;
    predictions are in float32.

    Args:
        lrs: learning rates to try.
        epochs: passes over the images to try.
        batch: largest number of images per step: an epoch is cut into equal batches.
        share: share of the training labels to learn from: see `balanced`.
        optimizer: "sgd", or "adamw" with betas 0.9 and 0.999.
        lr_scaling: "linear" multiplies the learning rates by the images of a batch / 256 (Goyal et al. 2017).
        weight_decay: weight decay of matrices and kernels; biases, norms, positions and class tokens have none.
        layer_decay: factor on the learning rate from one layer to the one below it (Clark et al. 2020), from 1 at the
            linear layer down to the stem. Layers are timm's: the blocks of transformers and ResNets.
        warmup: epochs in which the learning rate grows linearly; a tenth of the run if that is shorter.
        randaugment: operations of RandAugment on each crop, of random severity: see `Strong`. The papers' have one
            severity, 9 of 10.
        mixup: alpha of mixup (Zhang et al. 2018): images and labels are blended with the next image's by a weight from
            Beta(alpha, alpha), the same for up to 256 images.
        cutmix: alpha of CutMix (Yun et al. 2019): a box is the next image's. With mixup too, either is as likely.
        smoothing: share of each label that is spread over all classes.
        drop_path: probability with which the last block's residual branches are left out; the first one's stay, and it
            grows linearly between. Other noise that the encoder may have learned with is off.

    Raises:
        UserError: `layer_decay` with an encoder whose layers timm does not know, `drop_path` with one without branches.
    """

    name = "finetune"
    title = "fine-tuning"
    sees: ClassVar[Sees] = "network"
    seeded = True

    lrs: LearningRates = (0.005, 0.01, 0.02, 0.05, 0.1)
    epochs: Annotated[tuple[int, ...], POSITIVE] = (30, 50)
    batch: Count = 1024
    share: Annotated[float, SHARE] = 1.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr_scaling: Literal["constant", "linear"] = "constant"
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    layer_decay: Annotated[float, SHARE] = 1.0
    warmup: Annotated[float, NOT_NEGATIVE] = 0.0
    randaugment: Annotated[int, NOT_NEGATIVE] = 0
    mixup: Annotated[float, NOT_NEGATIVE] = 0.0
    cutmix: Annotated[float, NOT_NEGATIVE] = 0.0
    smoothing: Annotated[float, BELOW_ONE] = 0.0
    drop_path: Annotated[float, BELOW_ONE] = 0.0

    def run(self, task: ImageTask, seed: int) -> Prediction:
        known = task.frozen
        rows = torch.arange(len(known.train_y))
        if self.share < 1:
            rows = balanced(task.trainval.ids[: len(rows)], known.train_y.cpu(), self.share, seed)
        images, y = task.trainval.subset(rows.numpy()), known.train_y[rows.to(task.device)]
        crops = LabeledCrops(task, images, y, _crop(task.size, self.randaugment), self.batch, seed)
        validation = again(task.trainval.subset(range(len(known.train_y), len(task.trainval))), task.size)
        mix = _mixing(self.mixup, self.cutmix, known.classes)

        settings = [(lr, length) for length in self.epochs for lr in self.lrs]
        done, total = 0, crops.steps_per_epoch * sum(length for _, length in settings)
        tried: list[tuple[dict[str, float], float]] = []
        best = -1.0
        for lr, length in settings:
            model = _copy(task, self.drop_path)
            rate = lr * crops.batch / 256 if self.lr_scaling == "linear" else lr
            steps = crops.descend(
                partial(_forward, model, task.device),
                _optimizer(self.optimizer, groups(model, self.weight_decay, self.layer_decay), rate, task.device),
                lr=rate,
                epochs=length,
                warmup=self.warmup,
                mix=mix,
                loss=partial(F.cross_entropy, label_smoothing=self.smoothing, reduction="sum"),
            )
            for step in steps:
                epoch = 1 + (step - 1) // crops.steps_per_epoch
                task.tell(done + step, total, f"lr {lr:g}, epoch {epoch} of {length}")
            done += length * crops.steps_per_epoch
            accuracy = _accuracy(_logits(model, validation(), task), known.val_y)
            tried.append(({"lr": lr, "epochs": length}, accuracy))
            if accuracy > best:
                best, setting, chosen = accuracy, tried[-1][0], model
        logits = _logits(chosen, read_again(task.test, task.size), task)
        return Prediction(ranked(logits), setting | {"images": len(rows)}, tried, {})


@dataclass(frozen=True)
class Semi1(FineTune):
    """Fine-tuning of the whole encoder on 1 % of the training labels, the same number of each class (MULAN, B).

    See `FineTune` and `balanced`. The settings are chosen with all validation labels, which are more than 1 %.
    """

    name = "semi_1"
    title = "fine-tuning on 1 %"

    share: Annotated[float, SHARE] = 0.01


@dataclass(frozen=True)
class Semi10(FineTune):
    """Fine-tuning of the whole encoder on 10 % of the training labels, the same number of each class (MULAN, B).

    See `FineTune` and `balanced`.
    """

    name = "semi_10"
    title = "fine-tuning on 10 %"

    share: Annotated[float, SHARE] = 0.1


@dataclass(frozen=True)
class FineTuneViT(FineTune):
    """Fine-tuning of a transformer: AdamW, rates that fall with depth, mixup, CutMix, drop path (MAE, table 9).

    See `FineTune`. Learning rates are for 256 images: the 1e-3 of the paper, its half and its double, because it is
    adjusted to each set of images. These are the settings for ViT-B; larger ones take 50 epochs and more drop path. For
    ViT-B the authors' code has layer decay 0.65 at rate 5e-4, and so has BEiT (Bao et al. 2021), which warms up for 20
    epochs. The paper averages the patches; here the features are those of the encoder as it is. Sets of some thousand
    images want smaller batches, or there are few steps.
    """

    name = "finetune_vit"
    title = "fine-tuning by AdamW"

    lrs: LearningRates = (5e-4, 1e-3, 2e-3)
    epochs: Annotated[tuple[int, ...], POSITIVE] = (100,)
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr_scaling: Literal["constant", "linear"] = "linear"
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.05
    layer_decay: Annotated[float, SHARE] = 0.75
    warmup: Annotated[float, NOT_NEGATIVE] = 5
    randaugment: Annotated[int, NOT_NEGATIVE] = 2
    mixup: Annotated[float, NOT_NEGATIVE] = 0.8
    cutmix: Annotated[float, NOT_NEGATIVE] = 1.0
    smoothing: Annotated[float, BELOW_ONE] = 0.1
    drop_path: Annotated[float, BELOW_ONE] = 0.1


def _crop(size: int, randaugment: int = 0) -> Crop:
    """The papers' crops, with so many operations of RandAugment."""
    if randaugment:
        return Strong(1, size, (0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, operations=randaugment, hole=None)
    return Global(1, size=size, area=(0.08, 1.0), color=None, flip=0.5)


def _mixing(mixup: float, cutmix: float, classes: int) -> Mix:
    """torchvision's mixing, which draws from torch's generator and takes batches of any size; timm's does neither."""
    if not mixup and not cutmix:
        return unmixed
    from torchvision.transforms import v2

    ways = [kind(alpha=a, num_classes=classes) for kind, a in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if a]
    mix: Mix = v2.RandomChoice(ways)
    return mix


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


def groups(model: nn.Sequential, weight_decay: float, layer_decay: float) -> Groups:
    """Parameter groups of an encoder with its linear layer.

    Args:
        model: the encoder, and the linear layer on its features.
        weight_decay: weight decay of matrices and kernels; biases, norms, positions and class tokens have none.
        layer_decay: factor on the learning rate from one layer to the one below it; 1 for none.

    Raises:
        UserError: `layer_decay` with a network whose layers timm does not know.
    """
    encoder, head = model
    inner = encoder.encoder if isinstance(encoder, Chosen) else encoder
    if isinstance(inner, Encoder):
        rates = Full(layer_decay).groups(inner)
        scales = {id(p): group["lr_scale"] for group in rates for p in group["params"]}
        exempt = inner.model.no_weight_decay() if hasattr(inner.model, "no_weight_decay") else ()
        body = by_decay(inner.model.named_parameters(), scales, weight_decay, exempt=exempt)
        return body + by_decay(head.named_parameters(), {}, weight_decay)
    if layer_decay != 1:
        raise UserError(f"{_name(inner)} does not say what its layers are: set layer_decay to 1.")
    return groups_by_name(model, weight_decay)


def _name(encoder: nn.Module) -> str:
    """Name of the backbone, if it has one."""
    return getattr(encoder, "name", type(encoder).__name__)


def _optimizer(name: str, groups: Groups, lr: float, device: torch.device) -> torch.optim.Optimizer:
    fused = device.type in ("cpu", "cuda")
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=_MOMENTUM, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, lr=lr, fused=fused)


def _head(d: int, classes: int, device: torch.device) -> nn.Linear:
    head: nn.Linear = nn.utils.skip_init(nn.Linear, d, classes, device=device)  # the global random state stays as it is
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _forward(model: nn.Module, device: torch.device, x: Tensor) -> Tensor:
    with _precision(device):
        found = model(x)
    return _tensor(found.float())


def _tensor(x: Any) -> Tensor:
    """Modules return anything, as far as types tell."""
    assert isinstance(x, Tensor)
    return x


def _precision(device: torch.device) -> torch.autocast:
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def _logits(model: nn.Module, batches: Iterable[Tensor], task: ImageTask) -> Tensor:
    """Logits in exact float32, `n classes`."""
    return torch.cat([encode(model, pixels, mean=task.mean, std=task.std, device=task.device) for pixels in batches])


def _accuracy(logits: Tensor, y: Tensor) -> float:
    """Accuracy in [0, 1]; a network that diverged predicts nothing."""
    right = (logits.argmax(1) == y) & logits.isfinite().all(1)
    return right.cpu().double().mean().item()
