"""BYOL with three kinds of view in a loop of one's own: no engine, no recipe, no run folder.

python examples/own_loop.py [FOLDER OF IMAGES]
"""

import sys

import torch

import manyviews as mv
from manyviews.types import Progress


def main(data: str, epochs: int = 3) -> None:
    source = mv.data.open_source(data)
    loader = mv.data.Loader(source, size=64, batch=64)
    encoder = mv.backbones.Encoder("resnet18", stem="half", layers=(1, 1, 1, 1), channels=(16, 32, 64, 128))
    tasks = (
        mv.views.Global(2, size=32, area=(0.2, 1.0)),
        mv.views.Local(2, size=16, area=(0.05, 0.3)),
        mv.views.Cutout(1, size=32, area=(0.2, 1.0)),
    )
    method = mv.methods.BYOL(encoder, tasks=tasks, hidden_dim=256, output_dim=64)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)

    for step in range(epochs * loader.steps_per_epoch):
        at = Progress(step, epochs * loader.steps_per_epoch, loader.steps_per_epoch)
        if step % loader.steps_per_epoch == 0:
            batches = loader.batches(at.epoch)
        views = mv.views.Views(next(batches), tasks, seed=0, epoch=at.epoch)
        optimizer.zero_grad()
        total = 0.0
        for terms in method.loss(views, at):  # memory for one view, however many there are
            loss = sum(terms.values())
            loss.backward()
            total += loss.detach()
        optimizer.step()
        method.after_update(at)
        if step % 10 == 0:
            print(f"step {step}: loss {total:.3f}")
    torch.save(encoder.model.state_dict(), "encoder.pt")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "demo")
