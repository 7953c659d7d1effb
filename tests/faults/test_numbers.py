"""Numbers that are not finite, and gradients that jump: the last good state is kept, and the images are named."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from tests.faults.conftest import SEED, TIMES
from tests.faults.harness import contents, differences
from tests.faults.states import command

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


def images_of(out, step):
    """The images that the run's file names for a step."""
    found = json.loads((out / "suspects.json").read_text())
    return next((one["images"] for one in found if one["step"] == step), None)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("state", ["queue", "teacher and center"])
def test_it_stops_and_names_the_images_of_the_batch(state, value, server, images, scratch, whole, count):
    lost = []
    for step in (0, 1, 3):
        out = scratch / f"{value} {state} {step}"
        fault = {"kind": "numbers", "steps": [step], "value": value, "folder": str(out)}
        # A line of the log for every fourth step: the batch is named all the same, and the checkpoint is from before.
        ended = server.run(*command(state, images, out), "--set=monitor.steps=4", fault=fault)
        (out / "bad_batches.txt").unlink(missing_ok=True)
        named = images_of(out, step) if (out / "suspects.json").exists() else None
        if ended.code != 1 or "Traceback" in ended.text or f"at step {step}: the 16 images" not in ended.text:
            lost.append(f"{state}, {value} at step {step}: exit code {ended.code}: {ended.text[-500:]}")
        elif named is None or len(set(named)) != 16 or not all(list(images.rglob(n.split("/")[-1])) for n in named):
            lost.append(f"{state}, {value} at step {step}: it names {named}")
        elif step and f"The last good checkpoint, of step {step}, is in {out}" not in ended.text:
            lost.append(f"{state}, {value} at step {step}: another checkpoint: {ended.text[-300:]}")
        else:
            (out / "suspects.json").unlink()
            # The cause is gone: the last good state is that of the run without it.
            ended = server.run("resume", out)
            found = contents(out)
            expected = whole(state)[1]
            wrong = [key for key in expected if key not in ("log", "summary") and expected[key] != found.get(key)]
            if ended.code or wrong:
                lost.append(f"{state}, {value} at step {step}, resumed: {ended.text[-300:]} {wrong}")
    count("loss that is not a number, or infinite", 3, lost)


def test_rollback_leaves_out_the_batch_wherever_it_is_killed(server, images, scratch, whole, count):
    """Going back, leaving out and being killed meanwhile end where the same run ends that nothing kills."""
    draws, lost, times = random.Random(f"{SEED} rollback"), [], max(2, round(20 * TIMES))
    more, fault = ["--set=step.not_finite=rollback"], {"kind": "numbers", "steps": [2], "value": "nan"}
    expected = scratch / "rolled back"
    ended = server.run(*command("queue", images, expected), *more, fault={**fault, "folder": str(expected)})
    text = ended.text
    assert ended.code == 0, text
    first = contents(expected)
    if first["summary"]["left_out"] != [2] or "goes back and leaves out its batch 2." not in text:
        lost.append(f"left out {first['summary'].get('left_out')}: {text[-600:]}")
    steps = [(row["step"], "alarm" in row) for row in first["log"] if "loss" in row or "alarm" in row]
    if steps != [(1, False), (2, False), (3, True), (4, False)]:
        lost.append(f"the log has {steps}")
    for k in range(times):
        out, at = scratch / f"rolled back {k}", draws.uniform(0, ended.seconds)
        begun = server.run(
            *command("queue", images, out), *more, fault={**fault, "folder": str(out)}, signals=[(at, "SIGKILL")]
        )
        if not (out / "recipe.json").exists() or begun.code != -9:
            continue
        # The fault may come after the kill, so it is installed again; it knows its batch from a file.
        taken = json.loads((out / "run.json").read_text()).get("left_out")
        if taken is None and not (out / "bad_batches.txt").exists():
            shutil.rmtree(out)
            continue
        done = server.run("resume", out, fault={**fault, "folder": str(out), "steps": []})
        found = differences(first, contents(out)) if done.code == 0 else [done.text[-600:]]
        lost += [f"killed after {at:.3f} s: {one}" for one in found]
    count("loss that is not a number, with rollback, killed at a random moment", times, lost)


def test_a_run_whose_every_batch_fails_ends(server, images, scratch, count):
    out = scratch / "hopeless"
    fault = {"kind": "numbers", "steps": list(range(99)), "value": "nan", "folder": str(out)}
    more = ["--set=step.not_finite=rollback", "--set=epochs=12"]
    ended = server.run(*command("queue", images, out), *more, fault=fault)
    good = ended.code == 1 and "10 batches were left out before" in ended.text and "Traceback" not in ended.text
    count("loss that is not a number at every step, with rollback", 1, [] if good else [ended.text[-900:]])


def test_an_overflow_in_float16_names_the_images(server, images, scratch, count):
    out = scratch / "overflow"
    fault = {"kind": "numbers", "steps": list(range(99)), "value": "inf", "folder": str(out)}
    arguments = [*command("support set", images, out), "--set=step.precision=float16", "--set=epochs=9"]
    ended = server.run(*arguments, fault=fault)
    lost = []
    if ended.code != 1 or "precision=float32" not in ended.text or "16 images of its batch are in" not in ended.text:
        lost.append(ended.text[-600:])
    count("overflow in float16 at every step", 1, lost)


def test_a_spike_names_the_images(server, images, scratch, whole, count):
    out = scratch / "spike"
    fault = {"kind": "numbers", "steps": [14], "value": "1e6", "folder": str(out)}
    ended = server.run(*command("queue", images, out), "--set=epochs=10", "--set=monitor.epochs=0", fault=fault)
    named = images_of(out, 14) if (out / "suspects.json").exists() else None
    good = ended.code == 0 and named is not None and len(named) == 16 and "suspects.json" in ended.text
    count("gradient that jumps", 1, [] if good else [f"{named}: {ended.text[-900:]}"])
