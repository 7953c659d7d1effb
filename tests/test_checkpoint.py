"""Checkpoints are whole or not there, and are data."""

import errno
import os
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from manyviews import checkpoint
from manyviews.errors import UserError


def small() -> tuple[nn.Module, torch.optim.Optimizer]:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    net(torch.rand(2, 3, 5, 5))
    net.to(memory_format=torch.channels_last)
    return net, torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for i in steps:
        x = torch.rand(8, 3, 5, 5, generator=torch.Generator().manual_seed(i)).to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


def test_training_continues_to_the_same_bits(tmp_path: Path):
    net, optimizer = small()
    train(net, optimizer, range(3))
    checkpoint.save(tmp_path / "c", net, optimizer, {"step": 3})
    train(net, optimizer, range(3, 6))

    again, its_optimizer = small()
    assert checkpoint.load(tmp_path / "c", again, its_optimizer) == {"step": 3}
    # Fused optimizers walk weights and state side by side, and mix up elements when their layouts differ.
    assert its_optimizer.state[again[0].weight]["exp_avg"].stride() == again[0].weight.stride()
    train(again, its_optimizer, range(3, 6))
    for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_full_disk_leaves_the_last_good_file(tmp_path: Path):
    path = tmp_path / "c"
    checkpoint.save_tensors(path, {"x": torch.ones(3)}, {"step": 1})

    def full(part: Path) -> None:
        part.write_bytes(b"half of")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_atomically(path, full)
    tensors, facts = checkpoint.load_tensors(path)
    assert torch.equal(tensors["x"], torch.ones(3))
    assert facts == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_files_are_as_open_as_other_new_files(tmp_path: Path):
    before = os.umask(0o027)
    try:
        checkpoint.write_text(tmp_path / "file", "x")
        with checkpoint.new_folder(tmp_path / "new") as part:
            (part / "inside").mkdir(mode=0o700)
            os.close(tempfile.mkstemp(dir=part / "inside", prefix="model")[0])  # as safetensors writes a file
    finally:
        os.umask(before)
    modes = {path.name[:5]: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"file": 0o640, "new": 0o750, "insid": 0o750, "model": 0o640}


def test_links_stay_and_their_targets_are_replaced(tmp_path: Path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    checkpoint.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path):
    """As /dev/stdout is, which a rename would destroy for the whole system."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    checkpoint.write_text(pipe, "through")
    assert os.read(end, 100) == b"through"
    os.close(end)
    assert pipe.is_fifo()


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch):
    with pytest.raises(OSError, match="full"), checkpoint.new_folder(tmp_path / "out") as part:
        (part / "half").write_text("of it")
        raise OSError("full")
    assert not list(tmp_path.iterdir())
    with checkpoint.new_folder(tmp_path / "out") as part:
        (part / "whole").write_text("it")
        assert not (tmp_path / "out").exists()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["whole"]
    # Folders that are there, and cannot be removed: where one is, or a mount.
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with checkpoint.new_folder(Path()) as part:
        (part / "whole").write_text("it")
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["whole"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "out"]


def test_tensors_that_share_memory_are_saved_whole(tmp_path: Path):
    x = torch.arange(6.0)
    checkpoint.save_tensors(tmp_path / "c", {"a": x, "b": x, "c": x[1:5:2], "t": x.view(2, 3).T}, {})
    back, _ = checkpoint.load_tensors(tmp_path / "c")
    assert torch.equal(back["a"], x)
    assert torch.equal(back["b"], x)
    assert torch.equal(back["c"], x[1:5:2])
    assert torch.equal(back["t"], x.view(2, 3).T)


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="There is no file"):
        checkpoint.load_tensors(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        checkpoint.load_tensors(tmp_path / "text")
    checkpoint.save_tensors(tmp_path / "c", {"x": torch.ones(1000)}, {})
    whole = (tmp_path / "c").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        checkpoint.load_tensors(tmp_path / "cut")


def test_a_checkpoint_of_another_module_is_refused(tmp_path: Path):
    net, optimizer = small()
    checkpoint.save(tmp_path / "c", net, optimizer, {})
    other = nn.Linear(2, 2)
    with pytest.raises(UserError, match="does not fit the recipe"):
        checkpoint.load(tmp_path / "c", other, torch.optim.AdamW(other.parameters()))
