"""Find convolutions whose kernels write beyond their memory on this processor, on Linux with a C compiler.

    python scripts/find_overruns.py                     # 2,000 random convolutions, forward and backward
    python scripts/find_overruns.py --protected         # the same, as encoders of this package compute them

Each runs in a process of its own with a page behind every block that may not be touched (`overruns.c`), and its
gradients are compared with those in float64. On processors with AVX2 and PyTorch 2.14, what is found are strided 1x1
convolutions of fewer than 8 channels on channels-last maps: see `manyviews.backbones.convolution.protect`.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

GUARD = "MANYVIEWS_GUARD"


def draw(rng: random.Random) -> dict[str, Any]:
    """A convolution, its input, and how it is computed."""
    groups = rng.choice((1, 1, 1, 2, 4))
    return {
        "inputs": groups * rng.randint(1, 24),
        "outputs": groups * rng.randint(1, 24),
        "kernel": rng.choice((1, 1, 2, 3, 5, 7)),
        "stride": rng.choice((1, 2, 2, 3)),
        "groups": groups,
        "images": rng.choice((1, 2, 5, 16)),
        "side": rng.choice((8, 9, 12, 16, 24)),
        "channels_last": rng.random() < 0.7,
        "bfloat16": rng.random() < 0.3,
        "bias": rng.random() < 0.5,
    }


def wrong(case: dict[str, Any], protected: bool) -> str:
    """Compute one case; returns in which way its gradients are wrong, if they are."""
    import torch

    from manyviews.backbones import protect

    torch.manual_seed(0)
    torch.set_num_threads(1)
    conv = torch.nn.Conv2d(
        case["inputs"],
        case["outputs"],
        case["kernel"],
        case["stride"],
        case["kernel"] // 2,
        groups=case["groups"],
        bias=case["bias"],
    )
    layout = torch.channels_last if case["channels_last"] else torch.contiguous_format
    x = torch.randn(case["images"], case["inputs"], case["side"], case["side"]).to(memory_format=layout)
    z, weight = (t.detach().double().requires_grad_() for t in (x, conv.weight))
    exact = torch.nn.functional.conv2d(z, weight, None, conv.stride, conv.padding, groups=case["groups"])
    conv = conv.to(memory_format=layout)
    if protected:
        protect(conv)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=case["bfloat16"]):
        y = conv(x)
    g = torch.randn(y.shape).to(memory_format=layout)
    y.float().backward(g)
    exact.backward(g.double())
    off = [(a.grad - b.grad).abs().max() / b.grad.abs().max() for a, b in ((conv.weight, weight), (x, z))]
    return f"gradients off by {off[0]:.1g} and {off[1]:.1g}" if max(off) > (0.1 if case["bfloat16"] else 1e-4) else ""


def run(case: dict[str, Any], protected: bool) -> str:
    """The same in a fork; returns what went wrong there."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(theirs, 2)
        off = wrong(case, protected)
        os.write(2, off.encode())
        os._exit(bool(off))
    os.close(theirs)
    with os.fdopen(ours, errors="replace") as said:
        text = said.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f"{text.strip()} (status {code})" if code else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--protected", action="store_true", help="with manyviews.backbones.protect")
    options = parser.parse_args()
    if GUARD not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            guard = Path(folder, "overruns.so")
            source = Path(__file__).with_name("overruns.c")
            subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", guard, source, "-lpthread"], check=True)
            environment = os.environ | {GUARD: "1", "LD_PRELOAD": str(guard), "THP_MEM_ALLOC_ENABLE": "0"}
            sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment).returncode)
    import torch

    rng, found = random.Random(options.seed), 0
    print(f"PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}", flush=True)
    for _ in range(options.cases):
        case = draw(rng)
        if said := run(case, options.protected):
            found += 1
            print(" ".join(f"{k}={v}" for k, v in case.items()), ":", said, flush=True)
    print(f"{found} of {options.cases} convolutions went wrong.")
    sys.exit(found > 0)


if __name__ == "__main__":
    main()
