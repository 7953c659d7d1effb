"""An encoder that another library saved is judged as a short script of somebody else would judge it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

import manyviews as mv
from manyviews.data import open_source

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@pytest.fixture(scope="module")
def cifar(request: pytest.FixtureRequest):
    folder = request.getfixturevalue("shared_data")
    parts = (open_source(folder / f"cifar10_{part}.parquet") for part in ("train", "test"))
    return tuple(source.subset(range(n)) for source, n in zip(parts, (1000, 500), strict=True))


def with_torchvision(folder: Path):
    import torchvision

    net = torchvision.models.resnet18()
    torch.save(net.state_dict(), folder / "torchvision.pth")
    net.fc = torch.nn.Identity()
    return folder / "torchvision.pth", net


def with_lightly(folder: Path):
    import torchvision
    from lightly.models.modules import SimCLRProjectionHead

    class SimCLR(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
            self.projection_head = SimCLRProjectionHead(512, 512, 128)

    model = SimCLR()
    torch.save({"state_dict": model.state_dict()}, folder / "lightly.ckpt")
    return folder / "lightly.ckpt", torch.nn.Sequential(model.backbone, torch.nn.Flatten())


@pytest.mark.shared_data
@pytest.mark.parametrize("made", [with_torchvision, with_lightly])
def test_figures_are_those_of_an_independent_script(made, cifar, tmp_path: Path):
    file, net = made(tmp_path)
    train, test = cifar
    loaded = mv.load(file, test_size=32, mean=MEAN, std=STD)
    report = mv.evaluate(loaded, train, test, protocols=("knn", "logistic"), baselines=False)

    # The script: pixels, network, scikit-learn.
    def features(source):
        pixels = np.stack([np.asarray(source.load(i)) for i in range(len(source))]).transpose(0, 3, 1, 2) / 255
        x = (torch.tensor(pixels).float() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        with torch.inference_mode():
            return torch.cat([net.eval()(part) for part in x.split(250)]).numpy(), source.labels

    (x, y), (q, t) = features(train), features(test)
    vote = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.1), algorithm="brute")
    knn = vote.fit(x, y).score(q, t)
    scores = report.representations["trained"].scores
    assert scores["knn"].top1 == pytest.approx(knn, abs=0.01)
    penalty, scale = scores["logistic"].setting["l2"], StandardScaler().fit(x)
    # Ours is fitted without the validation images that chose its strength, a tenth of the set.
    probe = LogisticRegression(C=1 / (penalty * 0.9 * len(x)), max_iter=2000)
    kept = np.isin(np.arange(len(x)), split_of(train))
    linear = probe.fit(scale.transform(x[kept]), y[kept]).score(scale.transform(q), t)
    assert scores["logistic"].top1 == pytest.approx(linear, abs=0.01)


def split_of(source):
    from manyviews.data.split import split

    return split(source.ids, {"train": 0.9, "validation": 0.1}, salt="evaluation")["train"]
