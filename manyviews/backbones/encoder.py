"""The encoder: what is trained, evaluated and exported. Any timm model, with its classifier removed."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from manyviews.backbones.convolution import quicken
from manyviews.backbones.positions import sincos
from manyviews.errors import UserError, printable, unknown

Kind = Literal["pooled", "last4", "cls_mean"]
"""Of features: see `Encoder.features`."""

# timm is imported inside functions: it takes seconds, and listing methods or recipes does not need it.

_FOR_EXAMPLE = "vit_small_patch16_224"
_DYNAMIC = ("vision_transformer", "deit", "eva")  # timm's files whose models take images of any size when asked to
_FIXED = ("num_classes", "in_chans", "features_only")  # timm's settings that the contract below decides
# timm's settings that read files or the network. They may come from a file's header, so no encoder takes them.
_FETCHING = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "pretrained_strict")
# Whose weights a file may hold, for the message when they do not fit.
_COMMON = (
    *("resnet18", "resnet34", "resnet50", "resnet101"),
    *("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224"),
    *("convnext_femto", "convnext_tiny", "convnext_base", "efficientnet_b0", "mobilenetv3_large_100"),
)


def names(match: str = "*") -> list[str]:
    """The names of all backbones that match a shell pattern such as `vit_*`, sorted."""
    import timm

    return sorted(timm.list_models(match))


class Encoder(nn.Module):
    """A timm model without its classifier: `b 3 h w` to `b embed_dim`.

    Args:
        name: timm's, with or without a weights tag.
        stem: "native" is timm's own. "small", for ResNets on images of about 32 pixels, keeps the full resolution
            until the second stage: a 3x3 first convolution of stride 1 instead of 7x7 of stride 2, and no max-pool
            (SimCLR, appendix B.9). "half" is the same with stride 2, four times faster: for CPUs. "padded" is "small"
            with a padding of 2, which makes the first map two pixels larger: what solo-learn trains on CIFAR. "bare" is
            "small" without an activation after it: what is left of lightly's own ResNet in a Sequential of its parts.
            All are as wide as the first stage.
        pretrained: start from timm's weights, downloaded when they are not in its cache.
        position: of a vision transformer's patches: "learned", or "sincos", which is fixed.
        timm_kwargs: further settings for timm, such as `img_size`, `patch_size`, `drop_path_rate`, `channels`;
            numbers, texts and tuples, so that they can be saved.

    Attributes:
        name: as given.
        model: the timm model, whose state dict has timm's own names.
        pretrained: whether its weights came from elsewhere: timm's, or those that `load_weights` took.
        embed_dim: dimensions of the features.
        patch_dim: those of a place of the feature map or a patch: `embed_dim`, but for the few networks that widen
            after pooling (MobileNetV3).
        timm_kwargs: what `timm.create_model(name, num_classes=0, **timm_kwargs)` makes the same model from, save for
            a small stem.
        spec: everything `from_spec` needs to make the same architecture, JSON-able.

    Raises:
        UserError: no such name, settings that do not fit the model, or weights that cannot be had.
    """

    def __init__(
        self,
        name: str = "resnet18",
        *,
        stem: Literal["native", "half", "small", "padded", "bare"] = "native",
        pretrained: bool = False,
        position: Literal["learned", "sincos"] = "learned",
        **timm_kwargs: Any,
    ) -> None:
        super().__init__()
        _check_settings(name, timm_kwargs)
        if pretrained and (stem, position) != ("native", "learned"):
            raise UserError(f"{name} has pretrained weights for its native stem and learned positions only.")
        self.name, self.pretrained = name, pretrained
        self.spec = {"name": name, "stem": stem, "position": position, **timm_kwargs}
        self.timm_kwargs, self.model = _create(name, pretrained, timm_kwargs)
        self.patch_dim: int = self.model.num_features
        self.embed_dim: int = getattr(self.model, "head_hidden_size", None) or self.patch_dim
        # Only models that take images of any size have their patches checked; timm asserts the others' one size.
        self._patch: Any = self.model.patch_embed.patch_size[0] if "dynamic_img_size" in self.timm_kwargs else None
        if stem != "native":
            _small_stem(name, self.model, stride=2 if stem == "half" else 1, padding=2 if stem == "padded" else 1)
            if stem == "bare":
                self.model.act1 = nn.Identity()
        if position == "sincos":
            self._fix_positions()
        quicken(self.model)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Encoder:
        """An encoder of the architecture that `spec` describes, with fresh weights."""
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}
        return cls(**settings | {"pretrained": False})

    # -- features --------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features, `b embed_dim`. Raises UserError when patches do not tile the image."""
        self._check_size(x)
        return self.model(x)

    def features(self, x: Tensor, kind: Kind = "pooled") -> Tensor:
        """Features of a kind, `b width(kind)`, for probes.

        Those of vision transformers are DINO's (Caron et al. 2021), after the final norm, whichever block they are of.

        Args:
            x: `b 3 h w`.
            kind: "pooled" is `forward`. "last4" is the class tokens of the last four blocks, one after the other, the
                last block's last: for ViT-S and smaller. "cls_mean" is the last block's class token, and after it the
                mean of its patch tokens: for ViT-B and larger.

        Raises:
            UserError: the backbone does not have them, or patches do not tile the image.
        """
        self.width(kind)
        if kind == "pooled":
            return self(x)
        self._check_size(x)
        found = self.model.forward_intermediates(
            x,
            indices=4 if kind == "last4" else 1,
            return_prefix_tokens=True,
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        tokens = [prefix[:, 0] for _, prefix in found]
        return torch.cat(tokens if kind == "last4" else [*tokens, found[-1][0].mean(1)], 1)

    def width(self, kind: Kind) -> int:
        """Dimensions of `features` of a kind.

        Raises:
            UserError: no such kind, or the backbone is not a vision transformer with a class token and, for "last4",
                four blocks.
        """
        if kind not in get_args(Kind):
            raise unknown("kind of features", kind, get_args(Kind))
        if kind == "pooled":
            return self.embed_dim
        vit = self._vit(f"give features '{kind}'")
        if not vit.has_class_token:
            raise UserError(f"{self.name} cannot give features '{kind}', for it has no class token: take 'pooled'.")
        if kind == "last4" and len(vit.blocks) < 4:
            raise UserError(
                f"{self.name} cannot give features 'last4', for it has {len(vit.blocks)} blocks: take 'cls_mean'."
            )
        return vit.embed_dim * (4 if kind == "last4" else 2)

    def layers(self, x: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor | None, Tensor]]]:
        """`forward`'s features, and those of every block or stage, from the first to the last, in one forward pass.

        Of encoders that pool by a class token, all blocks' are after the final norm, as in `features`.

        Args:
            x: `b 3 h w`.

        Returns:
            pooled features, `b embed_dim`; and by timm's name of the layer ("layer1", "blocks.0") its class token,
            `b d`, None where the encoder does not pool by one, and its mean over all places, `b d`.

        Raises:
            UserError: patches do not tile the image.
        """
        self._check_size(x)
        model = self.model
        tokens = (
            getattr(model, "global_pool", None) == "token"
            and getattr(model, "cls_token", None) is not None
            and "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
        )
        wanted = {"norm": True, "return_prefix_tokens": True} if tokens else {}
        last, found = model.forward_intermediates(x, **wanted)
        info = model.feature_info
        names = info.module_name() if hasattr(info, "module_name") else [layer["module"] for layer in info]
        layers: dict[str, tuple[Tensor | None, Tensor]] = {}
        for name, layer in zip(names, found, strict=True):
            places, token = (layer[0], layer[1][:, 0]) if tokens else (layer, None)
            layers[name] = token, places.mean((2, 3))
        return model.forward_head(last), layers

    def patches(self, x: Tensor) -> Tensor:
        """Features of each place of the last feature map, row by row, or of each patch, `b n patch_dim`.

        Raises:
            UserError: patches do not tile the image, or the network gives several maps (CrossViT).
        """
        self._check_size(x)
        found = self.model.forward_features(x)
        if not isinstance(found, Tensor):
            raise UserError(f"{self.name} has no single map of features: choose another backbone.")
        if found.ndim == 3:
            return found[:, getattr(self.model, "num_prefix_tokens", 0) :]
        if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            return found.flatten(1, 2)
        return found.flatten(2).transpose(1, 2)

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Prefix tokens and the patch tokens that are kept, through all blocks, which never see the others.

        Positions are added before patches are dropped (MAE, He et al. 2022).

        Args:
            x: `b 3 h w`.
            keep: int64, `b v`, indices of patches, row by row; all when None.

        Returns:
            `b prefix+v embed_dim`, patches in the order of `keep`.

        Raises:
            UserError: the backbone is not a vision transformer.
        """
        vit = self._vit("drop patches")
        self._check_size(x)
        x = vit._pos_embed(vit.patch_embed(x))
        if keep is not None:
            prefix, patches = x[:, : vit.num_prefix_tokens], x[:, vit.num_prefix_tokens :]
            x = torch.cat([prefix, patches.gather(1, keep[:, :, None].expand(-1, -1, x.shape[2]))], 1)
        return vit.norm(vit.blocks(vit.norm_pre(x)))

    def _check_size(self, x: Tensor) -> None:
        self.check_size(*x.shape[-2:])

    def check_size(self, h: int, w: int) -> None:
        """Vision transformers of any size still need whole patches; timm's own assertion names no remedy.

        Raises:
            UserError: patches do not tile an image of this size.
        """
        if self._patch is not None and (h % self._patch or w % self._patch):
            raise UserError(
                f"Patches of {self._patch} pixels do not tile an image of {h} x {w}: change the view's size, or the "
                "test size."
            )

    # -- vision transformers ---------------------------------------------------------------------------------------

    @property
    def patch_size(self) -> int:
        """Side of a patch, pixels. Raises UserError for backbones without patches."""
        return self._vit("cut patches").patch_embed.patch_size[0]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at the size the model was made for."""
        return self._vit("cut patches").patch_embed.grid_size

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens, which come before the patches."""
        return self._vit("give tokens").num_prefix_tokens

    def freeze_patch_embed(self) -> None:
        """Keep the projection of patches as it was initialized (MoCo v3, section 4.1), or as it came from elsewhere.

        One that stays random matters more than one that learns: it is initialized as theirs, uniformly by Glorot and
        Bengio 2010, without a bias. PyTorch's own is half as large, beside positions that do not grow either.

        Raises:
            UserError: the backbone is not a vision transformer.
        """
        embed = self._vit("freeze a patch projection").patch_embed.requires_grad_(False)
        if not self.pretrained:
            nn.init.xavier_uniform_(embed.proj.weight.view(embed.proj.out_channels, -1))
            if embed.proj.bias is not None:
                nn.init.zeros_(embed.proj.bias)

    def _vit(self, what: str) -> Any:
        from timm.layers import PatchEmbed
        from timm.models.vision_transformer import VisionTransformer

        model = self.model
        if isinstance(model, VisionTransformer) and isinstance(model.patch_embed, PatchEmbed):
            return model
        raise UserError(f"{self.name} cannot {what}: choose a plain vision transformer, such as {_FOR_EXAMPLE}.")

    @torch.no_grad()
    def _fix_positions(self) -> None:
        vit = self._vit("have sine-cosine positions")
        if vit.pos_embed is None:
            raise UserError(f"{self.name} has no positions to fix: leave out position='sincos'.")
        fixed = sincos(vit.patch_embed.grid_size, vit.embed_dim)
        vit.pos_embed.zero_()[:, -len(fixed) :] = fixed  # prefix tokens have position zero
        vit.pos_embed.requires_grad_(False)

    # -- weights and what goes with them ---------------------------------------------------------------------------

    @property
    def mean(self) -> tuple[float, float, float]:
        """Of the channels, for normalization, as timm's weights want it."""
        return tuple(self.model.pretrained_cfg["mean"])

    @property
    def std(self) -> tuple[float, float, float]:
        """Of the channels, for normalization, as timm's weights want it."""
        return tuple(self.model.pretrained_cfg["std"])

    @property
    def test_size(self) -> int:
        """Side in pixels of the images the model was made for."""
        if self.spec["stem"] != "native":
            return 32
        size = self.timm_kwargs.get("img_size", self.model.pretrained_cfg["input_size"][-1])
        return size if isinstance(size, int) else size[-1]

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a state dict with timm's names; a classifier in it is left out.

        Raises:
            UserError: weights are missing, left over or of another shape. Nothing is loaded then.
        """
        heads = self.model.pretrained_cfg.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        theirs = {k: v for k, v in weights.items() if k.rpartition(".")[0] not in heads}
        ours = self.model.state_dict()
        wrong = [k for k in {**ours, **theirs} if k not in ours or k not in theirs or ours[k].shape != theirs[k].shape]
        if wrong:
            names = ", ".join(printable(k, 80) for k in wrong[:3])
            first = f"the first is {names}" if len(wrong) == 1 else f"the first are {names}"
            raise UserError(
                f"{len(wrong)} weights do not fit {self.name}'s {len(ours)} ({first}): {_seems(theirs, self.name)}."
            )
        self.model.load_state_dict(theirs)
        self.pretrained = True


def _check_settings(name: str, settings: Mapping[str, Any]) -> None:
    for key in settings:
        if key in _FETCHING:
            raise UserError(f"Setting {key} of {name} is not taken: give weights to `load_weights`.")
        if key in _FIXED:
            raise UserError(f"Setting {key} of {name} cannot be changed: encoders take RGB images and give features.")
    try:
        json.dumps(dict(settings))
    except TypeError as e:
        raise UserError(
            f"The settings of {name} must be numbers, texts or tuples, so that they can be saved: {e}."
        ) from e


def _create(name: str, pretrained: bool, settings: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        hint = f"Did you mean {', '.join(near[:-1])} or {near[-1]}? " if len(near) > 1 else ""
        raise UserError(f"There is no backbone '{name}'. {hint}`manyviews list backbones` shows them all.")
    given, settings = dict(settings), dict(settings)
    file = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    if file in _DYNAMIC:
        settings.setdefault("dynamic_img_size", True)
    try:
        return settings, timm.create_model(name, pretrained=pretrained, num_classes=0, **settings)
    except OSError as e:  # also what is raised where there is no network
        reason = f" ({e.strerror})" if e.strerror else ""
        raise UserError(
            f"The weights of {name} are not in the cache and could not be downloaded{reason}: connect to the network, "
            "or run this once on a machine that is connected and set HF_HUB_CACHE to a copy of its cache."
        ) from e
    except Exception as e:  # constructors raise whatever they meet
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        wanted = f" with {given}" if given else ""
        raise UserError(f"timm cannot make the backbone {name}{wanted}: {why}") from e


def _small_stem(name: str, model: Any, stride: int, padding: int) -> None:
    from timm.models.resnet import ResNet

    known = isinstance(model, ResNet)  # not asked in the `if`: mypy would lose the Any that timm's attributes need
    if not known:
        raise UserError(
            f"{name} has no small stem: choose a ResNet, or a vision transformer with img_size=32 and patch_size=4."
        )
    model.maxpool = nn.Identity()
    if not isinstance(model.conv1, nn.Conv2d):
        # A stem of three 3x3 convolutions keeps their number.
        model.conv1[0].stride, model.conv1[0].padding = (stride, stride), (padding, padding)
        return
    first = model.layer1[0]
    width = first.conv1.out_channels
    model.conv1 = _conv(3, width, 3, stride)
    model.conv1.padding = (padding, padding)
    # timm's stem has 64 channels whatever `channels` are; at this resolution it would be what a narrow network costs.
    if width != model.bn1.num_features:
        model.bn1 = type(model.bn1)(width)
        first.conv1 = _conv(width, width, first.conv1.kernel_size[0], 1)
        shortcut = first.downsample[-2]
        first.downsample[-2] = _conv(width, shortcut.out_channels, 1, 1)
        if shortcut.out_channels == width:
            first.downsample = None


def _conv(before: int, after: int, kernel: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


@cache
def _shapes(name: str) -> dict[str, torch.Size]:
    import timm

    with torch.device("meta"):
        return {k: v.shape for k, v in timm.create_model(name, num_classes=0).state_dict().items()}


def _seems(weights: Mapping[str, Tensor], wanted: str) -> str:
    """What these weights are of, in words: a common architecture that has nearly all of them, if there is one."""

    def fit(name: str) -> float:
        shapes = _shapes(name)
        same = sum(k in weights and weights[k].shape == shape for k, shape in shapes.items())
        return same / max(len(shapes), len(weights))

    fits = {name: fit(name) for name in (wanted, *_COMMON)}
    best = max(fits, key=lambda name: fits[name])
    if fits[best] < 0.9:
        same = len(weights.keys() & _shapes(wanted).keys()) / max(len(weights), len(_shapes(wanted)))
        best = wanted if same > 0.7 else ""  # the names of this architecture, in other shapes
    if not best:
        return "they are of another architecture, or have other names than timm's"
    if best == wanted:
        return "they were made with other settings, such as img_size, patch_size, stem or channels"
    return f"they seem to be of {best}"
