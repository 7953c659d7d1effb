"""What a person meant who typed a verb or an option that does not exist: by spelling, or by meaning."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence

from manyviews.errors import printable

_VERBS = {
    "pretrain": "train training fit learn run start new ssl",
    "resume": "continue restart proceed carry-on",
    "finish": "stop end complete conclude abort kill early-stop",
    "sweep": "search tune grid ablate hpo vary",
    "reproduce": "replicate paper papers table row repro",
    "demo": "try example quickstart hello",
    "prepare": "decode tile cache preprocess convert-images shard",
    "evaluate": "eval test score benchmark probe knn linear accuracy judge measure validate classify",
    "transfer": "suite downstream datasets",
    "segment": "segmentation miou",
    "detect": "detection coco voc",
    "propagate": "davis video track",
    "diagnose": "rankme collapse check health doctor",
    "select": "choose compare pick best",
    "embed": "features feature embedding embeddings extract encode infer inference predict vectors",
    "choose": "pick recommend candidates backbone which models",
    "serve": "server http api web deploy demo-page app",
    "search": "find query neighbors neighbours similar lookup retrieve retrieval",
    "distill": "compress teach student teacher shrink kd knowledge-distillation",
    "duplicates": "dedup dedupe deduplicate dups duplicate copies near-duplicates",
    "curate": "filter balance clean subset outliers sample select-images",
    "export": "convert save onnx timm torch huggingface hub torchscript deploy",
    "show": "info status inspect settings describe summary print log cat",
    "report": "page html plot plots visualize dashboard",
    "list": "ls recipes methods views protocols backbones models catalog",
}
"""Verbs, and words that people use for them."""

_OPTIONS = {
    "batch-size": "bs b batch minibatch batchsize images-per-batch",
    "device": "gpu cuda cpu mps xpu accelerator use-gpu no-cuda",
    "lr": "learning-rate rate step-size",
    "budget": "time max-time time-limit hours minutes duration",
    "epochs": "epoch n-epochs num-epochs max-epochs e passes",
    "seed": "random-seed random-state rng",
    "out": "output output-dir out-dir outdir output-folder save-dir save-path save-to dest destination folder o dir",
    "recipe": "method config cfg preset algorithm r model-config",
    "init": "pretrained weights checkpoint ckpt init-from start-from load-from from-weights",
    "protocol": "protocols probe metric p task",
    "data": "dataset data-dir train train-data images d path input",
    "test": "test-data test-set val validation eval-data holdout",
    "labels": "label annotations targets classes csv",
    "format": "type to as f",
    "set": "override option s setting",
    "json": "results save-json output-json",
    "test-size": "image-size img-size input-size size resolution",
    "backbone": "arch architecture model network",
    "baselines": "baseline",
    "images": "max-images limit n n-images count",
    "match": "filter pattern grep name",
    "metric": "score measure",
}
"""Options, and words that people use for them."""

_SETTINGS = {
    "backbone": "backbone.name",
    "arch": "backbone.name",
    "architecture": "backbone.name",
    "model": "backbone.name",
    "network": "backbone.name",
    "optimizer": "optimizer.name",
    "optim": "optimizer.name",
    "wd": "optimizer.weight_decay",
    "image-size": "method.view.size",
    "img-size": "method.view.size",
    "size": "method.view.size",
    "resolution": "method.view.size",
    "crop-size": "method.view.size",
    "amp": "step.precision",
    "dtype": "step.precision",
    "fp16": "step.precision",
    "bf16": "step.precision",
    "val-split": "data.holdout",
    "save-every": "monitor.checkpoint_minutes",
    "log-every": "monitor.steps",
    "wandb": "monitor.loggers",
    "tensorboard": "monitor.loggers",
}
"""Words that people use for settings of a recipe."""

_ELSEWHERE = {
    "workers": "There is no --workers: one process reads images and trains, with as many threads as cores. To give it "
    "fewer cores on Linux, start it as `taskset -c 0-3 manyviews ...`.",
    "gpus": "A process uses one GPU: for several, start `torchrun --nproc-per-node N -m manyviews VERB ...`.",
}
_WORDS_ELSEWHERE = {
    "workers": "num-workers n-workers j jobs n-jobs threads num-threads processes loader-workers",
    "gpus": "n-gpus num-gpus devices nproc nproc-per-node world-size ddp distributed",
}

_OWN = "{option} belongs to the settings of the run, which {verb} keeps: start another run with `manyviews pretrain`."
_REFUSED = {
    ("sweep", "seed"): "A sweep sets the seeds 0, 1, ... itself: choose how many with --seeds.",
    **{(verb, name): _OWN for verb in ("resume", "finish") for name in ("batch-size", "lr", "seed", "set", "recipe")},
}
_EXAMPLES = {"batch-size": "finetune.batch=128", "lr": "finetune.lrs=0.01,0.05", "epochs": "finetune.epochs=30"}
_BY_ITSELF = "{verb} chooses by itself how many images it looks at at once, so it has no {option}."
_OF_PROTOCOL = (
    "{verb} has no {option}: protocols that train have settings of their own, such as --set {example}; see "
    "`manyviews list protocols NAME`."
)


def verb(word: str, verbs: Collection[str]) -> str:
    """The sentence about a verb that does not exist."""
    asked = word.lower().strip("-").replace("_", "-")
    if asked in ("finetune", "fine-tune"):
        return f"There is no verb '{word}': use `manyviews evaluate RUN --data LABELED --protocol finetune`."
    found = asked if asked in verbs else _meant(asked, _VERBS, verbs) or _near(asked, verbs)
    more = f", as in `manyviews list {asked}`" if found == "list" and asked != "ls" else ""
    hint = f" Did you mean '{found}'{more}?" if found else ""
    return f"There is no verb '{printable(word, 60)}'.{hint} `manyviews help` lists all verbs."


def option(name: str, flag: str, options: Mapping[str, object], args: Sequence[str]) -> str:
    """The sentence about an option that a verb does not have.

    Args:
        name: the verb.
        flag: the option, as it was typed.
        options: the verb's options by flag.
        args: the whole command line after the verb.
    """
    asked, names = flag.lstrip("-").lower().replace("_", "-"), [o.removeprefix("--") for o in options]
    meant = _meant(asked, _OPTIONS, names)
    # `--bs` is refused with the same sentence as `--batch-size`.
    word = next((k for k, words in _OPTIONS.items() if asked in words.split() and (name, k) in _REFUSED), asked)
    if (name, word) in _REFUSED:
        return _REFUSED[name, word].format(option=flag, verb=name)
    elsewhere = _meant(asked, _WORDS_ELSEWHERE, _ELSEWHERE) or asked
    if elsewhere in _ELSEWHERE:
        return _ELSEWHERE[elsewhere]
    hint = ""
    if asked in ("cuda", "cpu", "mps", "xpu") and "--device" in options:
        hint = f" Did you mean '--device {asked}'?"
    elif "--recipe" in options and (path := _setting(asked, args)):
        hint = f" Did you mean '--set {path}=VALUE'?"
    elif meant:
        hint = f" Did you mean '--{meant}'?"
    elif name in ("evaluate", "transfer") and (word := _meant(asked, _OPTIONS, _EXAMPLES) or asked) in _EXAMPLES:
        return _OF_PROTOCOL.format(option=flag, verb=name, example=_EXAMPLES[word])
    elif asked == "batch-size":
        return _BY_ITSELF.format(option=flag, verb=name)
    elif found := _near(asked, names):
        hint = f" Did you mean '--{found}'?"
    return f"{name} has no option '{printable(flag, 60)}'.{hint} `manyviews {name} --help` lists them."


def choice(name: str, word: str, choices: Collection[str]) -> str:
    """A question after a word that an option does not take; empty if no choice is near."""
    if (name == "device" and word.lower() in ("gpu", "nvidia", "amd", "rocm")) or word.startswith("cuda:"):
        which = " CUDA_VISIBLE_DEVICES=1 chooses one of several." if ":" in word else ""
        return f" Did you mean 'cuda'?{which}"
    near = _near(word, choices)
    return f" Did you mean '{near}'?" if near else ""


def _meant(asked: str, words: Mapping[str, str], known: Collection[str]) -> str | None:
    """The known name that people mean by this word."""
    return next((name for name, some in words.items() if name in known and asked in some.split()), None)


def _near(asked: str, known: Collection[str]) -> str | None:
    """The known name that is spelled most alike."""
    return next(iter(difflib.get_close_matches(asked, known, n=1, cutoff=0.6)), None)


def _setting(asked: str, args: Sequence[str]) -> str | None:
    """The dotted path of the recipe's setting that people mean by this word."""
    from manyviews import recipes
    from manyviews.errors import UserError
    from manyviews.reporting.summary import settings

    if asked in _SETTINGS:
        return _SETTINGS[asked]
    words = [part for word in args for part in word.split("=", 1)]
    named = words[words.index("--recipe") + 1 :][:1] if "--recipe" in words else []
    try:
        paths = [path for path, _ in settings(recipes.get(named[0] if named else "simclr_cpu"))]
    except UserError:
        return None
    return next((path for path in paths if path.rsplit(".", 1)[-1].replace("_", "-") == asked), None)
