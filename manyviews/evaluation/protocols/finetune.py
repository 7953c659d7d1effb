"""Protocols that train on the images: a linear layer on random crops, and fine-tuning.

De Plaen et al. 2026, "MULAN", appendices A and B; He et al. 2022, "MAE", table 9, for transformers; He et al. 2020,
"MoCo", and Wightman et al. 2021, "ResNet strikes back", for MAST's table 10. Where the papers are silent: linear layers
start at zero; validation images choose; and the network that predicts has learned from all labels that the protocol
gives it, and is as it is after its last step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
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
from manyviews.evaluation.baselines import Pixels
from manyviews.evaluation.contract import (
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_OR_NONE,
    SHARE,
    Count,
    ImageProtocol,
    ImageTask,
    LearningRates,
    Prediction,
    Sees,
)
from manyviews.evaluation.crops import LabeledCrops, Mix, unmixed
from manyviews.evaluation.crops import again as read_often
from manyviews.evaluation.features import Chosen, encode, frozen, read_again
from manyviews.evaluation.linear import Standardizer, ranked
from manyviews.evaluation.subsets import balanced, matching, read_list
from manyviews.views import Crop, Global, Strong

_MOMENTUM = 0.9
_WHOLE = 0.2  # share of a mixed label above which the binary cross-entropy counts it whole, as timm's for A3


@dataclass(frozen=True)
class LinearAugmented(ImageProtocol):
    """A linear layer on standardized features of random crops and flips, by SGD; nothing is chosen (MULAN, A).

    Crops of 8 to 100 % of the image, mirrored half of the time, go through the frozen encoder anew in every epoch, in
    bfloat16 on a GPU. The standardization is that of the clean images. As nothing is chosen, validation images are
    training images too.

    Args:
        epochs: passes over the images; the encoder sees each image that often.
        lr: learning rate.
        batch: largest number of images per step: an epoch is cut into equal batches.
        momentum: momentum of SGD. MULAN does not name it.
        drops: shares of the run after each of which the learning rate falls to a tenth; none for a cosine to zero, per
            step.
        standardized: whether features are standardized.
    """

    name = "linear_augmented"
    title = "linear probe on crops"
    seeded = True

    epochs: Count = 100
    lr: Annotated[float, POSITIVE] = 0.005
    batch: Count = 512
    momentum: Annotated[float, BELOW_ONE] = _MOMENTUM
    drops: tuple[float, ...] = ()
    standardized: bool = True

    def forwards(self, rows: int) -> float:
        return float(self.epochs * rows)

    def run(self, task: ImageTask, seed: int) -> Prediction:
        known, epochs = task.frozen, self.epochs
        scaled = self.standardized or isinstance(task.encoder, Pixels)  # pixels are standardized in every protocol
        standard: Callable[[Tensor], Tensor] = Standardizer.of(known.trainval_x) if scaled else _as_is
        head = _head(known.train_x.shape[1], known.classes, task.device)

        def logits(x: Tensor) -> Tensor:
            with frozen(task.encoder), _precision(task.device):
                found = task.encoder(x).float()
            return _tensor(head(standard(found)))  # outside of inference mode, whose tensors nothing can learn from

        crops = LabeledCrops(task, task.trainval, known.trainval_y, _crop(task.size), self.batch, seed)
        optimizer = torch.optim.SGD(head.parameters(), lr=self.lr, momentum=self.momentum)
        for done in crops.descend(logits, optimizer, lr=self.lr, epochs=epochs, drops=self.drops):
            epoch = 1 + (done - 1) // crops.steps_per_epoch
            task.tell(done, epochs * crops.steps_per_epoch, f"epoch {epoch} of {epochs}")
        with torch.no_grad():
            found = head(standard(known.test_x))
        return Prediction(ranked(found), {"lr": self.lr, "epochs": epochs}, [], {})


@dataclass(frozen=True)
class LinearMoCo(LinearAugmented):
    """A linear layer on frozen features of random crops and flips, by SGD at a learning rate of 30 (MoCo).

    As `linear_augmented`, on features as they are, whose scale in ResNets asks for such a rate (He et al. 2020, section
    4.1): 100 epochs of batches of 256, to a tenth after 60 and 80. MAST's table 10 names it. The layer starts at zero,
    MoCo's at noise of standard deviation 0.01. For vision transformers take `linear_augmented`.
    """

    name = "linear_moco"
    title = "linear probe at rate 30"

    lr: Annotated[float, POSITIVE] = 30.0
    batch: Count = 256
    drops: tuple[float, ...] = (0.6, 0.8)
    standardized: bool = False


@dataclass(frozen=True)
class FineTune(ImageProtocol):
    """Fine-tuning of the whole encoder on all training labels; settings chosen on validation images (MULAN, B).

    A copy of the encoder and a linear layer on its features learn from random crops (8 to 100 % of the image) and
    flips by SGD with Nesterov momentum 0.9, without weight decay, dropout or drop path; cosine to zero per step. Each
    learning rate is tried with each number of epochs, all with the same crops in the same order; the first best on
    clean validation images is chosen. (The paper names the best on the test images.) The other settings are for
    transformers and ResNets from scratch: see `FineTuneViT` and `FineTuneA3`.

    The network that predicts has learned from all labels that the protocol gives it. With a subset, the validation
    images are those outside of it, and nothing is held out. With all labels, the validation images are held out while
    settings are tried; then a network learns anew from all images with the chosen setting. With one setting there is
    nothing to choose, and no trial.

    BatchNorm learns with the statistics of up to 256 images and predicts with running ones. Parameters with
    requires_grad=False stay frozen. On GPUs that have it in hardware the forward pass of training is in bfloat16;
    predictions are in float32.

    Args:
        lrs: learning rates to try.
        epochs: passes over the images to try.
        batch: largest number of images per step: an epoch is cut into equal batches.
        share: share of all training labels to learn from, those of validation images among them: see `balanced`.
        subset: file that names the images to learn from, in place of a share: a relative path or a file name in each
            line, as in SimCLR's lists of 1 and 10 % of ImageNet.
        optimizer: "sgd"; "adamw" with betas 0.9 and 0.999; or "lamb" (You et al. 2020, timm's), with the same.
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
        loss: "cross_entropy"; or "bce", a binary cross-entropy for each class, where each of two mixed labels that has
            more than a fifth counts whole.
        train_size: side of the crops in pixels; None for the encoder's input size, at which it is tested.
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
    subset: str | None = None
    optimizer: Literal["sgd", "adamw", "lamb"] = "sgd"
    lr_scaling: Literal["constant", "linear"] = "constant"
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    layer_decay: Annotated[float, SHARE] = 1.0
    warmup: Annotated[float, NOT_NEGATIVE] = 0.0
    randaugment: Annotated[int, NOT_NEGATIVE] = 0
    mixup: Annotated[float, NOT_NEGATIVE] = 0.0
    cutmix: Annotated[float, NOT_NEGATIVE] = 0.0
    smoothing: Annotated[float, BELOW_ONE] = 0.0
    drop_path: Annotated[float, BELOW_ONE] = 0.0
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    train_size: Annotated[int | None, POSITIVE_OR_NONE] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subset is not None:
            read_list(self.subset)  # refused before hours of work, not after them
        if self.loss == "bce" and self.smoothing:
            raise UserError(f"{self.name}.smoothing is for the cross-entropy: leave it 0 with {self.name}.loss=bce.")

    def forwards(self, rows: int) -> float:
        images = rows * self.share if self.subset is None else min(rows, len(read_list(self.subset)))
        passes = sum(self.epochs) * len(self.lrs)
        chosen = len(self.epochs) * len(self.lrs) > 1
        return 3.0 * images * (passes + (max(self.epochs) if chosen and images == rows else 0))

    def run(self, task: ImageTask, seed: int) -> Prediction:
        known = task.frozen
        n, total = len(known.train_y), len(known.trainval_y)
        allowed, missing = self._allowed(task, seed)
        validation = torch.arange(n, total)
        outside = validation[~torch.isin(validation, allowed)]
        settings = [(lr, length) for length in self.epochs for lr in self.lrs]
        # With a subset there are labels enough outside of it; else a part of the labels must be held out at first.
        again = len(settings) > 1 and 2 * len(outside) < len(validation) and bool((allowed < n).any())
        held = validation if again else outside
        if len(settings) > 1 and not len(held):
            raise UserError(f"{self.subset} leaves no image to choose {self.name}.lrs and epochs with: give one each.")
        tried_on = _Learning(self, task, allowed[allowed < n] if again else allowed, seed)
        judged = read_often(task.trainval.subset(held.numpy()), task.size) if len(settings) > 1 else None
        judged_y = known.trainval_y[held.to(task.device)]
        last = _Learning(self, task, allowed, seed) if again else tried_on

        done, steps = 0, tried_on.steps(sum(length for _, length in settings))
        steps += last.steps(max(self.epochs)) if again else 0
        tried: list[tuple[dict[str, float], float]] = []
        best, setting = -1.0, {"lr": settings[0][0], "epochs": settings[0][1]}
        for lr, length in settings:
            for step, note in tried_on.learn(lr, length):
                task.tell(done + step, steps, note)
            done += tried_on.steps(length)
            accuracy = 0.0 if judged is None else _accuracy(_logits(tried_on.model, judged(), task), judged_y)
            if judged is not None:
                tried.append(({"lr": lr, "epochs": length}, accuracy))
            if accuracy > best:
                best, setting, chosen = accuracy, {"lr": lr, "epochs": length}, tried_on.model
        if again:
            length = int(setting["epochs"])
            for step, note in last.learn(setting["lr"], length):
                task.tell(done + step, done + last.steps(length), f"all labels, {note}")
            chosen = last.model
        logits = _logits(chosen, read_again(task.test, task.size), task)
        notes = self._told(setting, len(allowed), total, len(held) if judged is not None else 0, again, missing)
        return Prediction(ranked(logits), setting | {"images": len(allowed)}, tried, {}, notes)

    def _allowed(self, task: ImageTask, seed: int) -> tuple[Tensor, list[str]]:
        """Rows of the training and validation images to learn from, and the names in the list that are none of them.

        Raises:
            UserError: the list names no training image, or one of several.
        """
        y = task.frozen.trainval_y.cpu()
        if self.subset is not None:
            ids = task.trainval.ids
            rows, missing = matching(read_list(self.subset), ids)
            if not len(rows):
                raise UserError(
                    f"None of the images in {self.subset} is a training image: it names {missing[0]}, and the images "
                    f"are called {ids[0]} and so on."
                )
            return rows, missing
        if self.share < 1:
            return balanced(task.trainval.ids, y, self.share, seed), []
        return torch.arange(len(y)), []

    def _told(
        self, setting: dict[str, float], images: int, total: int, held: int, again: bool, missing: list[str]
    ) -> tuple[str, ...]:
        """What the network that predicts has learned from, and on which images its setting was chosen."""
        origin = f"of {self.subset}" if self.subset is not None else f"of {total:,}"
        chosen = f"lr {setting['lr']:g} and {setting['epochs']:g} epochs were"
        if again:
            text = (
                f"{chosen} chosen with {held:,} validation images held out; then the network that predicts learned "
                f"anew from all {images:,} labeled images, these among them."
            )
        elif held:
            text = (
                f"the network learned from {images:,} labeled images {origin}; {chosen} chosen on {held:,} validation "
                "images outside of them, so none of them was held out."
            )
        else:
            text = f"{chosen} given, so nothing was held out: the network learned from {images:,} labeled images."
        if not missing:
            return (text,)
        lost = f"{len(missing):,} of the names in {self.subset} belong to no training image (first: {missing[0]})."
        return text, lost


@dataclass(frozen=True)
class Semi1(FineTune):
    """Fine-tuning of the whole encoder on 1 % of the training labels, the same number of each class (MULAN, B).

    See `FineTune` and `balanced`. The paper's images are SimCLR's list: `semi_1.subset`. The settings are chosen with
    the labels of all other validation images, which are more than 1 %.
    """

    name = "semi_1"
    title = "fine-tuning on 1 %"

    share: Annotated[float, SHARE] = 0.01


@dataclass(frozen=True)
class Semi10(FineTune):
    """Fine-tuning of the whole encoder on 10 % of the training labels, the same number of each class (MULAN, B).

    See `FineTune` and `balanced`. The paper's images are SimCLR's list: `semi_10.subset`.
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
    optimizer: Literal["sgd", "adamw", "lamb"] = "adamw"
    lr_scaling: Literal["constant", "linear"] = "linear"
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.05
    layer_decay: Annotated[float, SHARE] = 0.75
    warmup: Annotated[float, NOT_NEGATIVE] = 5
    randaugment: Annotated[int, NOT_NEGATIVE] = 2
    mixup: Annotated[float, NOT_NEGATIVE] = 0.8
    cutmix: Annotated[float, NOT_NEGATIVE] = 1.0
    smoothing: Annotated[float, BELOW_ONE] = 0.1
    drop_path: Annotated[float, BELOW_ONE] = 0.1


@dataclass(frozen=True)
class FineTuneA3(FineTune):
    """Fine-tuning of a ResNet by "ResNet strikes back" A3: 100 epochs at 160 pixels, LAMB, binary cross-entropy.

    Wightman et al. 2021, table 2, which MAST's table 10 fine-tunes with: rate 0.008 for batches of 2048, weight decay
    0.02, five epochs of warm-up, Mixup 0.1 or CutMix 1.0, two operations of RandAugment, no smoothing. Nothing is
    chosen. The paper's operations have severity 6 of 10 with some noise, these a random one (see `Strong`); its test
    images keep 95 % of their short side, these what the encoder's test size keeps. See `FineTune`.
    """

    name = "finetune_a3"
    title = "fine-tuning by A3"

    lrs: LearningRates = (8e-3,)
    epochs: Annotated[tuple[int, ...], POSITIVE] = (100,)
    batch: Count = 2048
    optimizer: Literal["sgd", "adamw", "lamb"] = "lamb"
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.02
    warmup: Annotated[float, NOT_NEGATIVE] = 5
    randaugment: Annotated[int, NOT_NEGATIVE] = 2
    mixup: Annotated[float, NOT_NEGATIVE] = 0.1
    cutmix: Annotated[float, NOT_NEGATIVE] = 1.0
    loss: Literal["cross_entropy", "bce"] = "bce"
    train_size: Annotated[int | None, POSITIVE_OR_NONE] = 160


def _as_is(x: Tensor) -> Tensor:
    return x.clone()  # outside of inference mode, as what a standardization gives


class _Learning:
    """Networks that learn from the same images, each with another setting.

    Args:
        protocol: all settings but those that are tried.
        task: the encoder and the images.
        rows: rows of the training and validation images to learn from, int64.
        seed: seed of the crops, their order and all noise.
    """

    def __init__(self, protocol: FineTune, task: ImageTask, rows: Tensor, seed: int) -> None:
        images, y = task.trainval.subset(rows.numpy()), task.frozen.trainval_y[rows.to(task.device)]
        self._protocol, self._task = protocol, task
        crop = _crop(protocol.train_size or task.size, protocol.randaugment)
        self._crops = LabeledCrops(task, images, y, crop, protocol.batch, seed)

    def steps(self, epochs: int) -> int:
        """How many steps so many epochs are."""
        return epochs * self._crops.steps_per_epoch

    def learn(self, lr: float, epochs: int) -> Iterator[tuple[int, str]]:
        """Train a new `model`; yields the steps done and words on them, after each."""
        p, task, crops = self._protocol, self._task, self._crops
        self.model = _copy(task, p.drop_path)
        rate = lr * crops.batch / 256 if p.lr_scaling == "linear" else lr
        steps = crops.descend(
            partial(_forward, self.model, task.device),
            _optimizer(p.optimizer, groups(self.model, p.weight_decay, p.layer_decay), rate, task.device),
            lr=rate,
            epochs=epochs,
            warmup=p.warmup,
            mix=_mixing(p.mixup, p.cutmix, task.frozen.classes),
            loss=_binary if p.loss == "bce" else partial(F.cross_entropy, label_smoothing=p.smoothing, reduction="sum"),
        )
        for step in steps:
            yield step, f"lr {lr:g}, epoch {1 + (step - 1) // crops.steps_per_epoch} of {epochs}"


def _binary(logits: Tensor, y: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over classes and the sum over images; labels of more than a fifth count whole."""
    targets = (y if y.ndim == 2 else F.one_hot(y, logits.shape[1])).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, (targets > _WHOLE).to(logits.dtype)) * len(logits)


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
    if name == "lamb":
        from timm.optim import Lamb

        return Lamb(groups, lr=lr)
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
