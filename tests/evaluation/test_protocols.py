"""The registry of protocols, their settings, and the k-NN protocols that are nothing else."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from manyviews.errors import UserError
from manyviews.evaluation import FeatureProtocol, Task, evaluate, protocols
from manyviews.evaluation.protocols.finetune import FineTune
from manyviews.evaluation.protocols.knn import KNN, KNNMajority


@pytest.mark.parametrize("name", protocols.names())
def test_every_protocol_says_what_it_does_and_stands_by_its_defaults(name):
    kind = protocols.get(name)
    line = kind.__doc__.splitlines()[0]
    assert line.endswith(".") and len(line) < 120 and kind.title and kind().name == name
    assert kind() == kind() and hash(kind()) == hash(kind())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"finetune.lr": 0.1}, "no setting of finetune 'lr'. Did you mean 'lrs'"),
        ({"semi_1.lrs": 0.1}, "semi_1.lrs is of no protocol that was asked for: knn, finetune"),
        ({"lrs": 0.1}, "lrs is of no protocol"),
        ({"knn.k": 10}, "'knn' has no settings"),
        ({"finetune.epochs": 1.5}, "finetune.epochs must be tuple"),
        ({"finetune.epochs": "many"}, "finetune.epochs must be tuple"),
        ({"finetune.lrs": ()}, "finetune.lrs must be positive"),
        ({"finetune.lrs": "0.1,-1"}, "finetune.lrs must be positive"),
        ({"finetune.batch": 0}, "finetune.batch must be positive"),
        ({"finetune.share": 1.5}, "finetune.share must be more than 0 and at most 1"),
        ({"finetune.drop_path": 1}, "finetune.drop_path must be at least 0 and less than 1"),
        ({"finetune.optimizer": "lars"}, "finetune.optimizer must be"),
        ({"corruptions.severities": "6"}, "corruptions.severities must be from 1 to 5"),
        ({"corruptions.kinds": "contrst"}, "Did you mean 'contrast'"),
        ({"corruptions.probe": "tree"}, "corruptions.probe must be"),
        ({"clustering.fit": "all"}, "clustering.fit must be"),
        ({"mlp.layers": 1}, "mlp.layers must be 2 or more, not 1: see the protocol 'linear'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    (path,) = settings
    first = path.partition(".")[0]
    more = (first,) if first in ("corruptions", "clustering", "mlp") else ()
    with pytest.raises(UserError, match=message):
        protocols.requested(("knn", "finetune", *more), settings)


def test_settings_are_values_or_texts_and_protocols_names_or_objects():
    for value in ("0.05, 0.1", [0.05, 0.1], (0.05, 0.1)):
        assert protocols.requested(("finetune",), {"finetune.lrs": value}) == (FineTune(lrs=(0.05, 0.1)),)
    for value in (3, "3"):
        assert protocols.requested(("finetune",), {"finetune.epochs": value}) == (FineTune(epochs=(3,)),)
    mine = FineTune(share=0.5)
    assert protocols.requested((mine, "knn", "knn"), {"finetune.batch": 7}) == (FineTune(share=0.5, batch=7), KNN())
    with pytest.raises(UserError, match="'finetune' was given twice"):
        protocols.requested((mine, "finetune"), {})
    with pytest.raises(UserError, match="Did you mean 'linear'"):
        protocols.requested(("knn", "liner"), {})
    with pytest.raises(UserError, match="No protocol"):
        protocols.requested((), {})


def test_an_earlier_name_is_understood_and_said():
    with pytest.warns(UserWarning, match="'guillotine' is called 'projector_layers' now"):
        (found,) = protocols.requested(("guillotine",), {"guillotine.images": 7})
    assert found.name == "projector_layers" and found.images == 7


OUTSIDE = '''
from dataclasses import dataclass
from typing import Annotated

from manyviews.evaluation import FeatureProtocol
from manyviews.evaluation.contract import POSITIVE
from manyviews.evaluation.knn import neighbors, vote
from manyviews.evaluation import Prediction

@dataclass(frozen=True)
class NearestTwo(FeatureProtocol):
    """The two nearest training images vote."""

    name = "nearest_two"
    title = "two nearest"

    k: Annotated[int, POSITIVE] = 2

    def run(self, task, seed):
        similarity, index = neighbors(task.train_x, task.test_x, self.k)
        return Prediction(vote(similarity, task.train_y[index], task.classes, None, 5), {"k": self.k}, [], {})
'''


def test_protocols_in_a_folder_outside_the_package_are_known(tmp_path, monkeypatch, encoder, pictures):
    (tmp_path / "nearest_two.py").write_text(OUTSIDE)
    monkeypatch.setenv("MANYVIEWS_PATH", str(tmp_path))
    kind = protocols.get("nearest_two")
    try:
        look = {"test_size": 12, "mean": (0.5,) * 3, "std": (0.5,) * 3, "baselines": False}
        found = evaluate(encoder, pictures(60), protocols=["nearest_two"], settings={"nearest_two.k": "3"}, **look)
        assert found.representations["trained"].scores["nearest_two"].setting == {"k": 3}
        assert found.verdict.startswith("two nearest ")
    finally:
        kind.name = ""  # the class lives on among the subclasses


def test_two_protocols_of_one_name_are_refused():
    @dataclass(frozen=True)
    class Second(FeatureProtocol):
        """A second k-NN."""

        name = "knn"

        def run(self, task, seed):
            raise NotImplementedError

    try:
        with pytest.raises(UserError, match=r"Two protocols are called 'knn'.*Rename one"):
            protocols.names()
    finally:
        Second.name = ""  # the class lives on among the subclasses


# -- k-NN ------------------------------------------------------------------------------------------------------------


def noisy(n=300, v=60, m=80, classes=4):
    x = torch.randn(n + v + m, 12)
    y = (x[:, :classes] + torch.randn(n + v + m, classes)).argmax(1)
    return Task(x[:n], y[:n], x[n : n + v], y[n : n + v], x[n + v :], classes)


def test_the_majority_is_scikit_learns_with_k_from_validation_images():
    """A tie of votes goes to the class of the lowest index, here and there."""
    chosen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        task = noisy()
        found = KNNMajority().run(task, 0)

        def theirs(k, x, y, test_x):
            model = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(x.double(), y)
            return torch.from_numpy(model.predict(test_x.double()))

        held = {k: (theirs(k, task.train_x, task.train_y, task.val_x) == task.val_y).double().mean() for k in (10, 20)}
        assert [s["k"] for s, _ in found.validation] == [10, 20]
        assert [a for _, a in found.validation] == pytest.approx([float(held[k]) for k in (10, 20)])
        best = 20 if held[20] > held[10] else 10
        assert found.setting == {"k": best}
        chosen.add(best)
        for k in (10, 20):
            assert torch.equal(found.others[f"k={k}"], theirs(k, task.trainval_x, task.trainval_y, task.test_x))
        assert torch.equal(found.ranked[:, 0], found.others[f"k={best}"])
    assert chosen == {10, 20}  # the rule was seen both ways


def test_with_few_images_all_of_them_vote():
    task = noisy(n=10, v=6)
    found = KNN().run(task, 0)
    assert found.setting["k"] == 16 and {"k=10 weighted", "k=16 weighted"} <= found.others.keys()
    model = KNeighborsClassifier(16, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1))
    model.fit(task.trainval_x.double(), task.trainval_y)
    assert found.ranked[:, 0].tolist() == model.predict(task.test_x.double()).tolist()
    found = KNNMajority().run(noisy(n=6, v=6), 0)
    assert found.setting == {"k": 6} and list(found.others) == ["k=6"]
