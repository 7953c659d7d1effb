"""Images with several labels, against scikit-learn, and from files on disk to a mean average precision."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from manyviews.data import open_source
from manyviews.data.split import split
from manyviews.errors import UserError
from manyviews.evaluation import Pixels, Task, extract
from manyviews.evaluation.protocols.multilabel import Multilabel, one_vs_rest
from manyviews.evaluation.sets import check_targets, refusal

from .conftest import features_task, measured

SHARES = {"train": 0.64, "validation": 0.16, "test": 0.2}


@pytest.fixture
def problem():
    """Features and labels of 200, 100 and 150 images: four classes, each of which shows in a few dimensions."""
    rng = np.random.default_rng(0)
    targets = rng.random((450, 4)) < [0.1, 0.3, 0.5, 0.2]
    x = rng.normal(size=(450, 30))
    x[:, :4] += 1.5 * targets
    x, targets = torch.from_numpy(x * rng.uniform(0.1, 10, 30) + 5).float(), torch.from_numpy(targets)
    return x[:200], targets[:200], x[200:300], targets[200:300], x[300:], targets[300:]


NAMES = ("cat", "dog", "emu", "fox")


def task_of(problem):
    return Task(*problem[:5], 4, NAMES)


def judged(problem, **settings):
    return measured(Multilabel(**settings), features_task(task_of(problem)), problem[5])


def scikit_learn(x, t, asked, penalty):
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=5000)
    fitted = [model.fit(scaler.transform(x), t[:, c]).decision_function(scaler.transform(asked)) for c in range(4)]
    return np.stack(fitted, 1)


def precision(scores, targets):
    return np.mean([average_precision_score(targets[:, c], scores[:, c]) for c in range(targets.shape[1])])


def test_the_classifiers_are_scikit_learns(problem):
    train_x, train_t, val_x, val_t, test_x, test_t = (v.numpy() for v in problem)
    for penalty in (1.0, 1e-4):
        found = one_vs_rest(task_of(problem), penalties=[penalty])
        np.testing.assert_allclose(found.logits, scikit_learn(train_x, train_t, test_x, penalty), atol=0.03)
    penalties = (1e-4, 1.0, 0.01)
    tried = {p: precision(scikit_learn(train_x, train_t, val_x, p), val_t) for p in sorted(penalties, reverse=True)}
    found = judged(problem, penalties=penalties)
    best = max(tried, key=lambda p: tried[p])
    assert found.setting == {"l2": best} and len(set(tried.values())) == 3
    wanted = scikit_learn(train_x, train_t, test_x, best)
    assert found.value == pytest.approx(precision(wanted, test_t), abs=0.003)
    for c, name in enumerate(NAMES):
        assert found.details[f"AP {name}"] == pytest.approx(precision(wanted[:, [c]], test_t[:, [c]]), abs=0.01)
    assert found.interval[0] < found.value < found.interval[1]
    validation = one_vs_rest(task_of(problem), penalties=penalties).validation
    assert {s["l2"]: a for s, a in validation} == pytest.approx(tried, abs=0.005)


def test_validation_labels_choose_and_test_labels_do_not(problem):
    found = judged(problem)
    for wrong in (~problem[5], problem[5].flip(0)):
        other = judged((*problem[:5], wrong))
        assert other.setting == found.setting and other.value != found.value
    noisy = (*problem[:3], problem[3].flip(0), *problem[4:])
    chosen = {judged(noisy).setting["l2"], found.setting["l2"]}
    assert len(chosen) == 2  # of other validation labels, another


def test_a_class_without_test_images_is_left_out_and_counted(problem):
    *known, test_t = problem
    full = judged(problem)
    test_t = test_t.clone()
    test_t[:, 1] = False
    found = judged((*known, test_t))
    assert full.details["classes without test images"] == 0 and found.details["classes without test images"] == 1
    assert list(found.details) == ["mAP of 11 points", "classes without test images", "AP cat", "AP emu", "AP fox"]
    rest = [full.details[f"AP {name}"] for name in ("cat", "emu", "fox")]
    assert found.value == pytest.approx(np.mean(rest))
    with pytest.raises(UserError, match="None of the 150 test images has a label"):
        judged((*known, torch.zeros_like(test_t)))


# -- from files ------------------------------------------------------------------------------------------------------

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def folder(tmp_path):
    """300 small pictures with patches of up to three colors, and which ones, in a CSV file."""
    rng = np.random.default_rng(0)
    rows = ["path,label"]
    (tmp_path / "pictures").mkdir()
    for i in range(300):
        pixels = rng.integers(0, 80, (8, 8, 3)).astype(np.uint8)
        names = [name for name in COLORS if rng.random() < 0.4]
        for k, name in enumerate(names):
            row = rng.integers(0, 2) * 4
            pixels[row : row + 4, 2 * k : 2 * k + 2] = COLORS[name]
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
        rows += [f"pictures/{i}.png,{name}" for name in names or [""]]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    return tmp_path


def test_from_a_folder_and_a_csv_to_a_mean_average_precision(folder):
    source = open_source(folder, folder / "labels.csv")
    assert source.several and check_targets(source) == ["blue", "green", "red"]
    found = extract(Pixels(), source, test_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert found.labels is None
    targets = torch.from_numpy(source.targets)[found.index]
    parts = [torch.from_numpy(rows) for rows in split(found.ids, SHARES, salt="evaluation").values()]
    given = [v[rows] for rows in parts for v in (found.x, targets)]
    task = Task(*given[:5], 3, tuple(check_targets(source)))
    measure = measured(Multilabel(), features_task(task), given[5])
    chance = given[5].double().mean().item()
    assert measure.name == "mAP" and measure.value > 0.9 > chance + 0.3
    assert {"AP blue", "AP green", "AP red"} < set(measure.details)


def test_what_cannot_be_judged_is_said(folder, tmp_path):
    source = open_source(folder, folder / "labels.csv")
    several = next(i for i, t in enumerate(source.targets) if t.sum() != 1)
    text = str(refusal(source))
    assert source.where(several) in text and f"has {source.targets[several].sum()}" in text and "'multilabel'" in text
    with pytest.raises(UserError, match=r"has no labels.*path,label"):
        check_targets(open_source(np.zeros((3, 8, 8, 3), np.uint8)))
    with pytest.raises(UserError, match="are of 1 class"):
        check_targets(source.subset(np.flatnonzero(source.targets.sum(1) == 1)[:1]))
