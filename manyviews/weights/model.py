"""A model that answers: an encoder, a head, and what its answers mean; a folder of data that timm reads too."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyviews import __version__, checkpoint
from manyviews.backbones import Encoder
from manyviews.data import Reading, Source
from manyviews.errors import UserError, from_json, printable
from manyviews.evaluation.features import frozen, normalize, short_side, test_images
from manyviews.evaluation.knn import neighbors
from manyviews.heads.classify import classifier
from manyviews.progress import progress
from manyviews.threads import threads_of
from manyviews.weights import segmenter
from manyviews.weights.embedding import given
from manyviews.weights.load import Pretrained
from manyviews.weights.pixels import pixels
from manyviews.weights.segmenter import Segmenter
from manyviews.weights.showing import preprocessing

FACTS, WEIGHTS, KNOWN, README = "model.json", "model.safetensors", "known.safetensors", "README.md"
"""The files of a model's folder."""

_NEIGHBORS = 5
_MOST = 5_000  # training features that are kept, unit length, in half precision: 8 MB for 768 dimensions
_HELD = 0.95  # share of validation images that are known, by definition


@dataclass(frozen=True, eq=False)
class Known:
    """How far an image lies from those that were learned from (Sun et al. 2022).

    Attributes:
        x: float32, `m d`, features of up to 5,000 training images, of unit length.
        neighbors: the distance is to the training image that is so many-th nearest.
        threshold: largest distance of an image that is known: 95 % of the validation images lie closer.
    """

    x: Tensor
    neighbors: int
    threshold: float

    @classmethod
    def of(cls, train_x: Tensor, val_x: Tensor) -> Known:
        """From features of training images, `n d`, and of validation images, `v d`."""
        rows = torch.linspace(0, len(train_x) - 1, min(_MOST, len(train_x))).long()
        # As the file holds them, so that the threshold is that of the model that is read again.
        x = F.normalize(train_x[rows].float(), dim=1).half().float().cpu()
        found = cls(x, min(_NEIGHBORS, len(x)), 0.0)
        return cls(x, found.neighbors, float(found.distance(val_x).double().quantile(_HELD)))

    def distance(self, x: Tensor) -> Tensor:
        """One less the cosine similarity, of features `b d`: float32, `b`, on the CPU."""
        similarity, _ = neighbors(self.x, x.cpu(), self.neighbors)
        return 1 - similarity[:, -1]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Answers for images, in their order.

    Attributes:
        ids: stable names of the images.
        classes: names of the classes, or of the numbers.
        outputs: float32, `n classes`: probabilities, or numbers; NaN for images that cannot be read.
        distance: float32, `n`: see `Known`; NaN for these.
        known: bool, `n`, whether an image is as near to the training images as most validation images.
        problems: place of each image that cannot be read, among the rows, and the reason.
        task: "classes", "several" or "numbers": see `Model`.
        thresholds: with "several", the probability of each class from which on an image has it.
    """

    ids: list[str]
    classes: tuple[str, ...]
    outputs: np.ndarray
    distance: np.ndarray
    known: np.ndarray
    problems: dict[int, str] = field(default_factory=dict)
    task: str = "classes"
    thresholds: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def probability(self) -> np.ndarray:
        """Calibrated probability of each class: `outputs`. Raises UserError for a model of numbers."""
        if self.task == "numbers":
            raise UserError("This model gives numbers, which have no probability: see Predictions.outputs.")
        return self.outputs

    @property
    def best(self) -> list[str]:
        """The likeliest class of each image; "" for one that cannot be read."""
        return ["" if i in self.problems else self.classes[c] for i, c in enumerate(self.ranked(1)[:, 0])]

    @property
    def found(self) -> list[tuple[str, ...]]:
        """The classes of each image whose probability reaches the threshold: for models of "several"."""
        there = self.probability >= np.array(self.thresholds, dtype=np.float32)
        return [tuple(name for name, has in zip(self.classes, row, strict=True) if has) for row in there.tolist()]

    def ranked(self, k: int) -> np.ndarray:
        """The k likeliest classes of each image, best first: int64, `n k`."""
        return np.argsort(-self.probability, axis=1, kind="stable")[:, :k]


def answered(outputs: Tensor, task: str, temperature: float) -> Tensor:
    """What a head's outputs say, `b outputs`: probabilities that add up to one, one of each class, or numbers."""
    if task == "numbers":
        return outputs
    return (outputs / temperature).sigmoid() if task == "several" else (outputs / temperature).softmax(1)


class Answer(nn.Module):
    """A head and what its outputs say: features `b d` to probabilities `b classes`, or to numbers."""

    def __init__(self, head: nn.Module, task: str, temperature: float) -> None:
        super().__init__()
        self.head, self.task, self.temperature = head, task, temperature

    def forward(self, x: Tensor) -> Tensor:
        return answered(self.head(x), self.task, self.temperature)


@dataclass(frozen=True, eq=False, kw_only=True)
class Model(Pretrained):
    """An adapted encoder with a head.

    Every verb that takes weights takes a model too, and sees its encoder.

    Attributes:
        head: features, `b d`, to logits, `b classes`: a linear layer, or a `Sequential` of torch's layers.
        head_spec: what `heads.classify.classifier` makes the head from.
        classes: names of the classes, or of the numbers.
        temperature: logits are divided by it, so that probabilities are those of validation images (Guo et al. 2017).
        kept: distances to training images.
        facts: everything else that is known of the model: strategy, numbers on validation and test images, JSON-able.
        task: "classes", one of each image; "several", any number of them; or "numbers".
        thresholds: with "several", the probability of each class from which on an image has it.
    """

    head: nn.Module
    head_spec: Mapping[str, Any]
    classes: tuple[str, ...]
    temperature: float
    kept: Known
    facts: Mapping[str, Any]
    task: str = "classes"
    thresholds: tuple[float, ...] = ()

    @property
    def top(self) -> nn.Module:
        return Answer(self.head, self.task, self.temperature)

    @property
    def outputs(self) -> str:
        return "numbers" if self.task == "numbers" else "probabilities"

    def predict(self, images: Any) -> Predictions:
        """Classes of images, with calibrated probabilities.

        Args:
            images: as `Pretrained.embed` takes them: arrays, PIL images, paths, or a folder.

        Raises:
            UserError: there are no images, or arrays of another type, shape or range.
        """
        source = given(self, images)
        with progress("predict") as update:
            return answers(self, source, lambda done: update(done, len(source)))


def answers(model: Model, source: Source, tell_done: Callable[[int], object] = lambda done: None) -> Predictions:
    """Answers for all images of a source, in exact float32.

    Args:
        model: a model.
        source: images that are read as the encoder learned to see them.
        tell_done: called now and then with the number of images done.
    """
    look = preprocessing(model)
    device, size = look["device"], look["test_size"]
    encoder, head = model.encoder.to(device), model.head.to(device)
    n = len(source)
    logits = torch.full((n, len(model.classes)), torch.nan)
    distance = torch.full((n,), torch.nan)
    problems: dict[int, str] = {}
    done = 0
    with threads_of(device) as threads:
        for images, good, bad in test_images(source, size):
            problems |= bad
            if good:
                rows = torch.tensor(good)
                with frozen(encoder, head):
                    x = encoder(normalize(images.to(device), look["mean"], look["std"])).float()
                    logits[rows] = head(x).cpu()
                distance[rows] = model.kept.distance(x.clone())
            threads.step()
            done += len(good) + len(bad)
            tell_done(done)
    found = answered(logits, model.task, model.temperature).numpy()
    known = (distance <= model.kept.threshold).numpy()
    how = model.task, model.thresholds
    return Predictions(source.ids, model.classes, found, distance.numpy(), known, problems, *how)


# -- a folder ------------------------------------------------------------------------------------------------------


def is_model(path: Path) -> bool:
    """Whether a folder holds a model."""
    return (path / FACTS).is_file()


def described(folder: Path) -> dict[str, Any]:
    """What a model's folder says, without its weights. Raises UserError for a damaged one."""
    try:
        found: dict[str, Any] = from_json((folder / FACTS).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as e:
        raise UserError(f"{folder / FACTS} is no description of a model ({e}): adapt again.") from e
    return found


def write(model: Model, out: Path) -> None:
    """Write a model to a new folder.

    `model.safetensors` holds the encoder under timm's names, and the head under the name of timm's classifier.

    Raises:
        UserError: the encoder is a bare module, which only its own library can save.
    """
    encoder = model.encoder
    if not isinstance(encoder, Encoder):
        raise UserError(f"{model.name} is a bare module, which cannot be saved: adapt weights that `load` reads.")
    with checkpoint.new_folder(out) as part:
        checkpoint.save_tensors(part / WEIGHTS, tensors(model), {})
        checkpoint.save_tensors(part / KNOWN, {"x": model.kept.x.half()}, {})
        checkpoint.write_text(part / FACTS, json.dumps(facts_of(model), indent=2))
        checkpoint.write_text(part / README, _readme(model))


def tensors(model: Model) -> dict[str, Tensor]:
    """All weights under timm's names."""
    assert isinstance(model.encoder, Encoder)
    place = _place(model.encoder)
    found = {k: v.detach().cpu() for k, v in model.encoder.model.state_dict().items()}
    return found | {f"{place}.{k}": v.detach().cpu() for k, v in model.head.state_dict().items()}


def warmed(model: Model) -> Model:
    """The same model with its temperature in the last layer of the head."""
    head = copy.deepcopy(model.head)
    last = [m for m in head.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        for p in last.parameters():
            p.div_(model.temperature)
    return replace(model, head=head, temperature=1.0)


def with_head(model: Model) -> nn.Module:
    """A copy of timm's model with the head in the place of its classifier.

    Raises:
        UserError: timm's model has no single classifier, or a stem that timm cannot build.
    """
    encoder = model.encoder
    assert isinstance(encoder, Encoder)
    if (why := _beyond_timm(encoder)) is not None:
        raise UserError(f"timm cannot hold this model, because {why}: export to onnx or torch_export.")
    found: Any = copy.deepcopy(encoder.model).cpu()
    found.set_submodule(_place(encoder), copy.deepcopy(model.head).cpu())
    found.num_classes = len(model.classes)
    made: nn.Module = found
    return made


def facts_of(model: Model) -> dict[str, Any]:
    """What model.json says."""
    encoder = model.encoder
    assert isinstance(encoder, Encoder)
    size = model.test_size
    timm = {"name": encoder.name, "settings": encoder.timm_kwargs, "classifier": _place(encoder)}
    return {
        "library": "manyviews",
        "version": __version__,
        "task": model.task,
        "classes": model.classes,
        **({"thresholds": model.thresholds} if model.thresholds else {}),
        "temperature": model.temperature,
        "head": dict(model.head_spec),
        "timm": timm if _beyond_timm(encoder) is None else None,
        "encoder": encoder.spec,
        "preprocessing": {
            "size": size,
            "short_side": short_side(size),
            "interpolation": "bicubic",
            "crop": "center",
            "range": (0, 1),
            "channels": encoder.channels,
            "mean": model.mean,
            "std": model.std,
        },
        "known": {"neighbors": model.kept.neighbors, "threshold": model.kept.threshold, "images": len(model.kept.x)},
        **({} if model.reading is None else {"reading": model.reading.to_dict()}),
        **model.facts,
    }


_OWN = {
    *("library", "version", "task", "classes", "thresholds", "temperature", "head", "timm", "encoder"),
    *("preprocessing", "known", "reading"),
}
"""Names in model.json that are fields of a model; all others are its facts."""


def read(folder: Path) -> Model | Segmenter:
    """A model from its folder; one that segments, if it is one.

    Raises:
        UserError: a file is missing or damaged.
    """
    facts = described(folder)
    if facts.get("task") == "segmentation":
        return segmenter.read(folder, facts)
    try:
        look, kept = facts["preprocessing"], facts["known"]
        classes, spec, head_spec = tuple(facts["classes"]), facts["encoder"], facts["head"]
        numbers = float(facts["temperature"]), int(kept["neighbors"]), float(kept["threshold"])
        mean, std, size = tuple(look["mean"]), tuple(look["std"]), int(look["size"])
        reading = Reading.from_dict(facts["reading"]) if "reading" in facts else None
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{folder / FACTS} is no description of a model ({e}): adapt again.") from e
    encoder = Encoder.from_spec(spec)
    place = _place(encoder)
    found, _ = checkpoint.load_tensors(folder / WEIGHTS)
    own = {k.removeprefix(f"{place}."): v for k, v in found.items() if k.startswith(f"{place}.")}
    encoder.load_weights({k: v for k, v in found.items() if not k.startswith(f"{place}.")})
    try:
        head = classifier(head_spec, encoder.embed_dim, len(classes))
        head.load_state_dict(own)
    except (RuntimeError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"{folder / WEIGHTS} does not fit {FACTS} beside it: {printable(e, 200)}") from e
    x = checkpoint.load_tensors(folder / KNOWN)[0]["x"].float()
    return Model(
        encoder=encoder.eval(),
        mean=mean,
        std=std,
        test_size=size,
        name=str(folder),
        reading=reading,
        head=head,
        head_spec=head_spec,
        classes=classes,
        temperature=numbers[0],
        kept=Known(x, numbers[1], numbers[2]),
        task=facts.get("task", "classes"),
        thresholds=tuple(facts.get("thresholds", ())),
        facts={k: v for k, v in facts.items() if k not in _OWN},
    )


def _place(encoder: Encoder) -> str:
    """timm's name of the classifier, or one of ours where there are several or none."""
    found = encoder.model.pretrained_cfg.get("classifier")
    return found if isinstance(found, str) and _single(encoder, found) else "classifier_head"


def _single(encoder: Encoder, place: str) -> bool:
    """Whether the encoder leaves this place empty."""
    parts = dict(encoder.model.named_modules())
    return isinstance(parts.get(place), nn.Identity)


def _beyond_timm(encoder: Encoder) -> str | None:
    """Why timm cannot build the same network; None if it can."""
    if "neck" in encoder.spec:
        return "it has no layers of a projector"
    if encoder.spec["stem"] != "native":
        return f"it has no stem '{encoder.spec['stem']}'"
    if "norm_eps" in encoder.spec:
        return "it has no setting for the epsilon of layer norms"
    if _place(encoder) == "classifier_head":
        return f"its {encoder.name} has no single classifier"
    return None


def _readme(model: Model) -> str:
    """What the folder holds, and how to use it without this library."""
    facts = facts_of(model)
    lines = [
        f"# {printable(model.facts.get('title', 'A model'), 80)}",
        "",
        f"{_counted(model)}: {printable(', '.join(model.classes), 400)}.",
        "",
        "`manyviews show` says what it is, and `manyviews predict` uses it. `model.json` holds every fact.",
        "",
    ]
    if facts["timm"] is None or len(model.mean) != 3:
        return "\n".join([*lines, "Without manyviews: `manyviews export` writes it as ONNX or torch.export.", ""])
    return "\n".join(
        [
            *lines,
            "Without manyviews, for image files of 8 bits a channel:",
            "",
            "```python",
            *_program(model),
            "```",
            "",
        ]
    )


def _counted(model: Model) -> str:
    """What a model answers with, in words."""
    n = len(model.classes)
    if model.task == "numbers":
        return "A number" if n == 1 else f"{n} numbers"
    return f"{n} classes, of which an image may have several" if model.task == "several" else f"{n} classes"


def _program(model: Model) -> Iterator[str]:
    """A program with timm alone that prints the probabilities of images."""
    yield from """\
import json
import sys

import numpy as np
import timm
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import nn

""".splitlines()
    yield ""
    yield from inspect.getsource(pixels).rstrip().splitlines()
    yield from """\


facts = json.load(open("model.json", encoding="utf-8"))
net = timm.create_model(facts["timm"]["name"], num_classes=len(facts["classes"]), **facts["timm"]["settings"])
""".splitlines()
    if model.head_spec["kind"] == "mlp":
        yield from """\
d, hidden, classes = net.num_features, facts["head"]["hidden"], len(facts["classes"])
d = getattr(net, "head_hidden_size", None) or d
head = nn.Sequential(nn.Linear(d, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(), nn.Linear(hidden, classes))
net.set_submodule(facts["timm"]["classifier"], head)
""".splitlines()
    outputs = {"numbers": "net(x[None])[0]", "several": '(net(x[None]) / facts["temperature"]).sigmoid()[0]'}
    answer = outputs.get(model.task, '(net(x[None]) / facts["temperature"]).softmax(1)[0]')
    yield from f"""\
net.load_state_dict(load_file("model.safetensors"))
net.eval()
look = facts["preprocessing"]
mean, std = (torch.tensor(look[name]).view(-1, 1, 1) for name in ("mean", "std"))
for path in sys.argv[1:]:
    x = (torch.from_numpy(pixels(path, look["size"], look["short_side"])) - mean) / std
    with torch.no_grad():
        answer = {answer}
    print(json.dumps(dict(zip(facts["classes"], answer.tolist()))))""".splitlines()
