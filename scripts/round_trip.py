"""Export encoders of distinct files of timm in every format, load each file again, and compare the features.

    python scripts/round_trip.py --out benchmarks/round_trip.json
    python scripts/round_trip.py --only eva beit --out some.json

Weights are random, with noise on every parameter and statistic, so that a lost or a swapped one shows. Tensors are
loaded by `manyviews.load`, the Hub's folder also by transformers, and programs by their own software. A number is the
greatest difference of features over the greatest feature.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before PyTorch is imported
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("ignore")

import torch

import manyviews as mv
from manyviews import machine
from manyviews.backbones import Encoder
from manyviews.checkpoint import write_text
from manyviews.errors import UserError
from manyviews.weights import FORMATS, Pretrained, write

BOUND = 1e-5
Settings = dict[str, Any]
VIT = {"img_size": 64, "patch_size": 16, "depth": 3, "embed_dim": 96, "num_heads": 3}

MODELS: dict[str, tuple[str, int, Settings]] = {
    "beit": ("beit_base_patch16_224", 64, VIT),
    "byobnet": ("test_byobnet", 64, {}),
    "cait": ("cait_xxs24_224", 64, {"img_size": 64, "depth": 3}),
    "convit": ("convit_tiny", 224, {}),
    "convnext": ("convnext_atto", 64, {}),
    "crossvit": ("crossvit_tiny_240", 240, {}),
    "cspnet": ("cs3darknet_focus_s", 64, {}),
    "cspnext": ("cspnext_tiny", 64, {}),
    "deit": ("deit_tiny_distilled_patch16_224", 64, {"img_size": 64, "depth": 3}),
    "densenet": ("densenet121", 64, {}),
    "dla": ("dla46x_c", 64, {}),
    "dpn": ("dpn48b", 64, {}),
    "edgenext": ("edgenext_xx_small", 64, {}),
    "efficientformer_v2": ("efficientformerv2_s0", 224, {}),
    "efficientnet": ("efficientnet_b0", 64, {}),
    "efficientvit_mit": ("efficientvit_b0", 64, {}),
    "efficientvit_msra": ("efficientvit_m0", 224, {}),
    "eva (DINOv3)": ("vit_small_patch16_dinov3_qkvb", 64, VIT),
    "fasternet": ("fasternet_t0", 64, {}),
    "fastvit": ("fastvit_t8", 64, {}),
    "gcvit": ("gcvit_xxtiny", 224, {}),
    "ghostnet": ("ghostnet_050", 64, {}),
    "hardcorenas": ("hardcorenas_b", 64, {}),
    "hgnet": ("hgnetv2_b0", 64, {}),
    "hrnet": ("hrnet_w18_small", 64, {}),
    "inception_next": ("inception_next_atto", 64, {}),
    "levit": ("levit_128s", 224, {}),
    "mambaout": ("mambaout_femto", 64, {}),
    "metaformer": ("poolformer_s12", 64, {}),
    "mlp_mixer": ("gmlp_ti16_224", 64, {"img_size": 64}),
    "mobilenetv3": ("lcnet_035", 64, {}),
    "mobilevit": ("mobilevit_xxs", 64, {}),
    "pit": ("pit_ti_224", 224, {}),
    "pvt_v2": ("pvt_v2_b0", 64, {}),
    "regnet": ("regnetx_002", 64, {}),
    "repghost": ("repghostnet_050", 64, {}),
    "repvit": ("repvit_m1", 64, {}),
    "resnet": ("resnet18", 64, {}),
    "resnetv2": ("resnetv2_18", 64, {}),
    "rexnet": ("rexnetr_100", 64, {}),
    "sknet": ("skresnet18", 64, {}),
    "starnet": ("starnet_s050", 64, {}),
    "swiftformer": ("swiftformer_xs", 64, {}),
    "swin_transformer (NHWC)": (
        "swin_tiny_patch4_window7_224",
        56,
        {"img_size": 56, "embed_dim": 24, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 3, 3)},
    ),
    "tiny_vit": ("tiny_vit_5m_224", 224, {}),
    "vision_transformer": ("vit_tiny_patch16_224", 64, VIT),
    "vision_transformer (registers)": ("vit_small_patch14_reg4_dinov2", 64, VIT),
    "vision_transformer_relpos": ("vit_relpos_small_patch16_224", 64, VIT),
    "vovnet": ("ese_vovnet19b_slim", 64, {}),
    "xcit": ("xcit_nano_12_p16_224", 64, {}),
    "13 channels": ("resnet18", 64, {"in_chans": 13}),
}
"""By timm's file: a model, the size of images, and settings that make it small."""


@torch.no_grad()
def make(name: str, size: int, settings: Settings) -> Pretrained:
    """An encoder whose weights and statistics are nobody's defaults."""
    torch.manual_seed(0)
    encoder = Encoder(name, **settings).eval()
    for key, value in encoder.model.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.add_(0.02 * torch.randn_like(value))
    mean, std = ((v,) * encoder.channels for v in (0.45, 0.25))
    return Pretrained(encoder, mean, std, size, name)


@torch.no_grad()
def again(
    format: str, path: Path, ours: Pretrained, settings: Settings, pixels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Features of images in [0, 1] from a file, by what loaded it."""
    x = (pixels - 0.45) / 0.25
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return {"onnxruntime": torch.from_numpy(session.run(None, {"images": pixels.numpy()})[0])}
    if format == "torchscript":
        return {"torch.jit.load": torch.jit.load(path)(pixels)}
    if format == "torch_export":
        return {"torch.export.load": torch.export.load(path).module()(pixels)}
    named = {"backbone": ours.encoder.name, **settings} if format == "torch" else {}
    if format in ("torchvision", "detectron2"):
        named = {k: v for k, v in settings.items() if k == "num_heads"}
    found = {"manyviews.load": mv.load(path, **named).encoder(x)}
    if format == "huggingface":
        from transformers import AutoModel

        found["transformers"] = AutoModel.from_pretrained(path).eval()(x).pooler_output
    if format in ("timm", "huggingface"):
        import timm

        found["timm"] = timm.create_model(f"local-dir:{path}", pretrained=True).eval()(x)
    return found


def main() -> None:
    """Print a table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(MODELS), help="timm's files")
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    rows: list[dict[str, Any]] = []
    print(f"{'':32}" + "".join(f"{format:>14}" for format in FORMATS))
    for file in args.only:
        name, size, settings = MODELS[file]
        begun, cells, row = time.perf_counter(), "", {"file": file, "model": name, "size": size}
        try:
            ours = make(name, size, settings)
            pixels = torch.rand(2, ours.encoder.channels, size, size, generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                wanted = ours.encoder((pixels - 0.45) / 0.25)
        except Exception as e:
            print(f"{file:32}{e}", flush=True)
            rows.append(row | {"error": str(e)})
            continue
        for format in FORMATS:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / ("m.pt2" if format == "torch_export" else "m")
                try:
                    write(ours, format, path)
                    found = again(format, path, ours, settings, pixels)
                    off = {k: float((v - wanted).abs().max() / wanted.abs().max()) for k, v in found.items()}
                    row[format] = off
                    cells += f"{max(off.values()):14.1e}"
                except UserError as e:
                    row[format] = {"refused": str(e).replace(str(folder), "")}
                    cells += f"{'refused':>14}"
                except Exception as e:
                    row[format] = {"failed": f"{type(e).__name__}: {str(e)[:300]}"}
                    cells += f"{'FAILED':>14}"
        print(f"{file:32}{cells}{time.perf_counter() - begun:8.0f} s", flush=True)
        rows.append(row)
        facts = {
            "machine": machine.describe(torch.device("cpu")),
            "commit": commit.strip(),
            "bound": BOUND,
            "rows": rows,
        }
        write_text(args.out, json.dumps(facts, indent=1))
    numbers = [v for r in rows for f in FORMATS for v in r.get(f, {}).values() if isinstance(v, float)]
    failed = sum("failed" in r.get(f, {}) for r in rows for f in FORMATS) + sum("error" in r for r in rows)
    over = sum(not v <= BOUND for v in numbers)
    print(f"{len(rows)} models, {len(numbers)} files loaded: {over} differ by more than {BOUND}, {failed} failed.")
    sys.exit(1 if over or failed else 0)


if __name__ == "__main__":
    main()
