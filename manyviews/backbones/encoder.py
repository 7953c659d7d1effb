"""The encoder: what is trained, evaluated and exported. Any timm model, with its classifier removed."""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from manyviews.backbones import masked
from manyviews.backbones.attention import unfuse
from manyviews.backbones.convolution import protect, quicken
from manyviews.backbones.neck import attach
from manyviews.backbones.packing import drop_uniformly, flat, packs, parted, run, skip_dropped
from manyviews.backbones.pooling import Descriptor
from manyviews.backbones.positions import sincos
from manyviews.checkpoint import load_tensors
from manyviews.errors import Unreachable, UserError, printable
from manyviews.types import Packed


class Layer(NamedTuple):
    """Features of one block or stage, before the final norm.

    Attributes:
        patches: `b n d`, each patch or place of the map, row by row, or in the order of `keep`.
        prefix: `b p d`, class token and registers; p may be 0.
    """

    patches: Tensor
    prefix: Tensor


class Features(NamedTuple):
    """What one pass through an encoder gives.

    Attributes:
        pooled: `b embed_dim`.
        patches: `b n patch_dim`, of each patch or place of the last map, row by row, or in the order of `keep`. n is 0
            for the few networks with several maps (CrossViT).
        prefix: `b p patch_dim`, class token and registers; p may be 0.
        layers: the last blocks or stages asked for, from the first of them to the last.
    """

    pooled: Tensor
    patches: Tensor
    prefix: Tensor
    layers: tuple[Layer, ...] = ()


def take(x: Tensor, index: Tensor) -> Tensor:
    """Some of the patches of each image, `b n d` to `b v d`, by int64 indices, `b v`."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


# timm is imported inside functions: it takes seconds, and listing methods or recipes does not need it.

_FOR_EXAMPLE = "vit_small_patch16_224"
_DYNAMIC = ("vision_transformer", "deit", "eva")  # timm's files whose models take images of any size when asked to
_FIXED = ("num_classes", "features_only")  # timm's settings that the contract below decides
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
    """A timm model without its classifier: `b channels h w` to `b embed_dim`.

    Args:
        name: timm's, with or without a weights tag.
        stem: "native" is timm's own. "small", for ResNets on images of about 32 pixels, keeps the full resolution
            until the second stage: a 3x3 first convolution of stride 1 instead of 7x7 of stride 2, and no max-pool
            (SimCLR, appendix B.9). "half" is the same with stride 2, four times faster: for CPUs. "padded" is "small"
            with a padding of 2, which makes the first map two pixels larger: what solo-learn trains on CIFAR. "bare" is
            "small" without an activation after it: what is left of lightly's own ResNet in a Sequential of its parts.
            All are as wide as the first stage.
        pretrained: start from timm's weights, downloaded when they are not in its cache; or from those of a safetensors
            file with timm's names, by its path.
        position: positions of a vision transformer's patches: "learned", or "sincos", which is fixed.
        neck: layers after the pooled features, in the place of timm's classifier: the first of a projector, from whose
            inside fine-tuning begins. See `backbones.neck`.
        descriptor: dimensions of a copy descriptor that takes the place of the pooled features: see `describe`.
        timm_kwargs: further settings for timm, such as `img_size`, `patch_size`, `in_chans`, `drop_path_rate`,
            `channels`; numbers, texts and tuples, so that they can be saved. With another `in_chans` than 3, timm's
            pretrained weights of the first convolution are adapted. Two settings are ours: `norm_eps`, the epsilon of
            all layer norms, or the name of a part and the epsilon of those in it; libraries differ there. And
            `drop_path_uniform`: whether all blocks of a transformer have the `drop_path_rate`, as in DINOv2, which
            grows up to it from block to block otherwise.

    Attributes:
        name: as given.
        model: the timm model, whose state dict has timm's own names.
        pretrained: whether its weights came from elsewhere: from timm, or by `load_weights`.
        channels: number of channels of the images.
        embed_dim: dimensions of the features.
        patch_dim: dimensions of a patch or a place of the feature map: `embed_dim`, except in networks that widen
            after pooling (MobileNetV3).
        timm_kwargs: what `timm.create_model(name, num_classes=0, **timm_kwargs)` makes the same model from, save for
            a small stem and our two settings.
        spec: everything `from_spec` needs to make the same architecture, JSON-able.
        stays: names of the model's parts that stay in evaluation mode while the rest trains, "" for all of it: see
            `manyviews.adaptation`.
        held: whether all of it stays so for now, and learns later.

    Raises:
        UserError: no such name, settings that do not fit the model, or weights that cannot be had.
    """

    def __init__(
        self,
        name: str = "resnet18",
        *,
        stem: Literal["native", "half", "small", "padded", "bare"] = "native",
        pretrained: bool | str = False,
        position: Literal["learned", "sincos"] = "learned",
        neck: Sequence[Sequence[Any]] = (),
        descriptor: int | None = None,
        **timm_kwargs: Any,
    ) -> None:
        super().__init__()
        _check_settings(name, timm_kwargs)
        file = Path(pretrained) if isinstance(pretrained, str) else None
        if pretrained is True and (stem, position) != ("native", "learned"):
            raise UserError(f"{name} has pretrained weights for its native stem and learned positions only.")
        self.name, self.pretrained = name, bool(pretrained)
        self.stays: tuple[str, ...] = ()
        self.held = False
        own = {"neck": tuple(map(tuple, neck))} if neck else {}
        self.spec = {"name": name, "stem": stem, "position": position, **own, **timm_kwargs}
        eps, uniform = timm_kwargs.pop("norm_eps", None), timm_kwargs.pop("drop_path_uniform", False)
        self.timm_kwargs, self.model = _create(name, pretrained is True, timm_kwargs)
        self.channels: int = timm_kwargs.get("in_chans", 3)
        self.patch_dim: int = self.model.num_features
        self.embed_dim: int = getattr(self.model, "head_hidden_size", None) or self.patch_dim
        # Only models that take images of any size have their patches checked; timm asserts the others' one size.
        self._patch: Any = self.model.patch_embed.patch_size[0] if "dynamic_img_size" in self.timm_kwargs else None
        if neck:
            self.embed_dim = attach(self.model, neck, name)
        if stem != "native":
            _small_stem(name, self.model, stride=2 if stem == "half" else 1, padding=2 if stem == "padded" else 1)
            if stem == "bare":
                self.model.act1 = nn.Identity()
        if position == "sincos":
            self._fix_positions()
        if eps is not None:
            _set_epsilon(name, self.model, eps)
        quicken(self.model)
        protect(self.model)
        if uniform:
            drop_uniformly(self.transformer("drop all blocks alike"), timm_kwargs.get("drop_path_rate", 0.0))
        skip_dropped(self.model)
        unfuse(self.model)
        if descriptor is not None:
            self.describe(descriptor)
        if file is not None:
            self.load_weights(load_tensors(file)[0])

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Encoder:
        """An encoder of the architecture that `spec` describes, with fresh weights."""
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}
        return cls(**settings | {"pretrained": False})

    def train(self, mode: bool = True) -> Encoder:
        super().train(mode)
        self.settle()
        return self

    def settle(self) -> None:
        """Put the parts that stay as they are into evaluation mode."""
        for name in ("",) if self.held else self.stays:
            self.model.get_submodule(name).eval()

    # -- features --------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor | Packed) -> Tensor:
        """Pooled features, `b embed_dim`. Raises UserError when patches do not tile the image."""
        return self.features(x).pooled

    def features(
        self,
        x: Tensor | Packed,
        *,
        keep: Tensor | None = None,
        hide: Tensor | None = None,
        token: Tensor | None = None,
        layers: int = 0,
    ) -> Features:
        """Everything that one pass gives: the only door to the network, and the one that is compiled.

        Patches are hidden before positions are added, and dropped after (MAE, He et al. 2022; iBOT, Zhou et al. 2022).
        ConvNeXt and Swin hide places of their last map: see `manyviews.backbones.masked`.

        Args:
            x: `b channels h w`; or images of several sizes, if the encoder `packs`. The pooled features are then those
                of all groups, one after the other; patches, prefix and `hide` are those of the first group, and `keep`
                and `layers` are not taken.
            keep: int64, `b v`, indices of the patches that the blocks see, row by row; all if None. Of a Swin, one of
                each 2 x 2 patches.
            hide: bool, `b n`, true for patches that `token` replaces, and that a ConvNeXt skips.
            token: `token_dim`; None for a ConvNeXt.
            layers: number of last blocks or stages whose features to return.

        Raises:
            UserError: patches do not tile the image, or the backbone cannot drop or hide patches.
        """
        if isinstance(x, Packed):
            assert keep is None and not layers, "Packed images keep all patches and give their last features."
            return self._packed(x, hide, token)
        self.check_size(*x.shape[-2:])
        last: Any
        inside: tuple[Layer, ...] = ()
        if keep is None and hide is None and not layers:
            last = self.model.forward_features(x)
        elif not layers and masked.hides_places(self.model):
            last = masked.partial_map(self.model, x, keep, hide, token)
        elif keep is None and hide is None and not self.is_transformer:
            last, maps = self.model.forward_intermediates(x, indices=layers)
            flat = [m.flatten(2).transpose(1, 2) for m in maps]
            inside = tuple(Layer(m, m[:, :0]) for m in flat)
        else:
            last, inside = self._by_block(x, keep, hide, token, layers)
        pooled = self.model.forward_head(last)
        if not isinstance(last, Tensor):  # several maps (CrossViT)
            return Features(pooled, pooled.new_empty(len(x), 0, self.patch_dim), pooled.new_empty(len(x), 0, 0), inside)
        if last.ndim == 4:
            nhwc = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            patches = last.flatten(1, 2) if nhwc else last.flatten(2).transpose(1, 2)
            return Features(pooled, patches, patches[:, :0], inside)
        prefix = getattr(self.model, "num_prefix_tokens", 0)
        return Features(pooled, last[:, prefix:], last[:, :prefix], inside)

    def _by_block(
        self, x: Tensor, keep: Tensor | None, hide: Tensor | None, token: Tensor | None, layers: int
    ) -> tuple[Tensor, tuple[Layer, ...]]:
        """The last block's tokens and those of the last `layers` blocks, of a transformer that sees some patches."""
        vit = self.transformer("drop or hide patches")
        x, rope = self._embedded(x, hide, token)
        n = vit.num_prefix_tokens
        if keep is not None:
            x = torch.cat([x[:, :n], take(x[:, n:], keep)], 1)
            rope = None if rope is None else _kept_rope(rope, keep)
        x = vit.norm_pre(x)
        inside = []
        for i, block in enumerate(vit.blocks):
            how: dict[str, Tensor] = (
                {} if rope is None else {"rope": rope[i] if getattr(vit, "rope_mixed", False) else rope}
            )
            run = partial(block, **how)
            x = checkpoint(run, x, use_reentrant=False) if vit.grad_checkpointing else run(x)
            if i >= len(vit.blocks) - layers:
                inside.append(Layer(x[:, n:], x[:, :n]))
        return vit.norm(x), tuple(inside)

    def _embedded(self, x: Tensor, hide: Tensor | None, token: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens with their positions, and rotary positions of the patches, if there are any."""
        x = self.model.patch_embed(x)
        if hide is not None:
            assert token is not None, "Patches are hidden by a token."
            x = torch.where(hide.view(*x.shape[:-1], 1), token.to(x.dtype), x)
        found = self.model._pos_embed(x)
        return found if isinstance(found, tuple) else (found, None)

    def _packed(self, x: Packed, hide: Tensor | None, token: Tensor | None) -> Features:
        vit = self.transformer("take images of several sizes at once")
        for group in x.groups:
            self.check_size(*group.shape[-2:])
        embedded = [self._embedded(g, None if k else hide, token) for k, g in enumerate(x.groups)]
        tokens, shapes = flat([t for t, _ in embedded])
        tokens = vit.norm_pre(tokens)
        mixed = getattr(vit, "rope_mixed", False)  # positions of each block's own
        for i, block in enumerate(vit.blocks):
            ropes = [rope[i] if mixed and rope is not None else rope for _, rope in embedded]
            tokens = run(block, tokens, shapes, ropes)
        first, *others = parted(vit.norm(tokens), shapes)
        pooled = torch.cat([vit.forward_head(t) for t in (first, *others)])
        return Features(pooled, first[:, self.num_prefix_tokens :], first[:, : self.num_prefix_tokens])

    @property
    def packs(self) -> bool:
        """Whether `features` takes images of several sizes in one pass: plain transformers of timm, not compiled."""
        return not hasattr(self.features, "_torchdynamo_orig_callable") and packs(self.model)

    @property
    def is_transformer(self) -> bool:
        """Whether `features` can drop and hide patches."""
        from timm.layers import PatchEmbed

        parts = ("patch_embed", "_pos_embed", "norm_pre", "blocks", "norm", "num_prefix_tokens")
        return all(hasattr(self.model, part) for part in parts) and isinstance(self.model.patch_embed, PatchEmbed)

    @property
    def skips_places(self) -> bool:
        """Whether `features` hides patches without a token: a ConvNeXt, whose convolutions skip them."""
        return masked.skips_places(self.model)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """timm's names of the blocks or stages that `features` gives with `layers`, such as "layer1", "blocks.0"."""
        info = self.model.feature_info
        return tuple(info.module_name() if hasattr(info, "module_name") else [layer["module"] for layer in info])

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
        """Side of a patch, pixels; in a ConvNeXt or a Swin, of a place of the last map.

        Raises:
            UserError: the backbone cannot hide patches.
        """
        if masked.hides_places(self.model):
            return masked.place_size(self.model)
        found: int = self.transformer("cut patches").patch_embed.patch_size[0]
        return found

    def grid(self, size: int | None = None) -> tuple[int, int]:
        """Rows and columns of patches of a square image: of `size` pixels, or of the size the model was made for."""
        if masked.hides_places(self.model):
            size = self.test_size if size is None else size
            return size // self.patch_size, size // self.patch_size
        embed = self.transformer("cut patches").patch_embed
        return embed.grid_size if size is None else (size // self.patch_size, size // self.patch_size)

    @property
    def token_dim(self) -> int:
        """Width of the token that hides patches: `embed_dim`, or in a Swin the width of its first map.

        Raises:
            UserError: the backbone hides no patches, or a ConvNeXt, which hides them without tokens.
        """
        if self.skips_places:
            raise UserError(f"{self.name} skips hidden patches, without a token in their place: take fcmae.")
        if masked.hides_places(self.model):
            return masked.token_dim(self.model)
        self.transformer("hide patches")
        return self.embed_dim

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens, which come before the patches."""
        found: int = self.transformer("give tokens").num_prefix_tokens
        return found

    def freeze_patch_embed(self) -> None:
        """Keep the projection of patches as it was initialized (MoCo v3, section 4.1), or as it came from elsewhere.

        One that stays random matters more than one that learns: it is initialized as theirs, uniformly by Glorot and
        Bengio 2010, without a bias. PyTorch's own is half as large, beside positions that do not grow either.

        Raises:
            UserError: the backbone is not a vision transformer.
        """
        embed = self.transformer("freeze a patch projection").patch_embed.requires_grad_(False)
        if not self.pretrained:
            nn.init.xavier_uniform_(embed.proj.weight.view(embed.proj.out_channels, -1))
            if embed.proj.bias is not None:
                nn.init.zeros_(embed.proj.bias)

    def describe(self, dim: int) -> None:
        """Make a copy descriptor of so many dimensions the encoder's features, in the place of pooled ones.

        An encoder that has one of this size keeps it, and its weights.

        Raises:
            UserError: the network does not pool a single map at its end, or has a descriptor of another size.
        """
        known = self.spec.get("descriptor")
        if known == dim:
            return
        if known is not None:
            raise UserError(f"The encoder has a descriptor of {known} dimensions: set method.output_dim={known}.")
        if not isinstance(getattr(self.model, "global_pool", None), nn.Module) or self.patch_dim != self.embed_dim:
            raise UserError(f"{self.name} has no last map that a descriptor could pool: choose a ResNet.")
        self.model.global_pool = Descriptor(self.patch_dim, dim)
        self.spec["descriptor"], self.embed_dim = dim, dim

    def transformer(self, what: str) -> Any:
        """The model, if it is a transformer on patches: timm's ViT and Eva, and the models that derive from them.

        Raises:
            UserError: it is another network, which cannot do `what`.
        """
        if self.is_transformer:
            return self.model
        raise UserError(f"{self.name} cannot {what}: choose a plain vision transformer, such as {_FOR_EXAMPLE}.")

    @torch.no_grad()
    def _fix_positions(self) -> None:
        vit = self.transformer("have sine-cosine positions")
        if vit.pos_embed is None:
            raise UserError(f"{self.name} has no positions to fix: leave out position='sincos'.")
        fixed = sincos(vit.patch_embed.grid_size, vit.embed_dim)
        vit.pos_embed.zero_()[:, -len(fixed) :] = fixed  # prefix tokens have position zero
        vit.pos_embed.requires_grad_(False)

    # -- weights and what goes with them ---------------------------------------------------------------------------

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, as timm's weights want it; repeated if there are not three: see `per_channel`."""
        return per_channel(self.model.pretrained_cfg["mean"], self.channels)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, as timm's weights want it; repeated if there are not three."""
        return per_channel(self.model.pretrained_cfg["std"], self.channels)

    @property
    def test_size(self) -> int:
        """Side in pixels of the images the model was made for."""
        if self.spec["stem"] != "native":
            return 32
        size = self.timm_kwargs.get("img_size", self.model.pretrained_cfg["input_size"][-1])
        return size if isinstance(size, int) else size[-1]

    @property
    def first_convolutions(self) -> tuple[str, ...]:
        """Names of the weights that see the channels of the images, among those of the state dict."""
        traits = getattr(self.model, "_traits", {})  # since timm 1.0.31, for stems other than the architecture's
        named = traits.get("first_conv") or self.model.pretrained_cfg.get("first_conv") or ()
        return tuple(f"{name}.weight" for name in ((named,) if isinstance(named, str) else named))

    def load_weights(self, weights: Mapping[str, Tensor]) -> str:
        """Take the weights of a state dict with timm's names; a classifier in it is left out.

        Weights for RGB are adapted to another number of channels as timm does it: summed for one channel, else repeated
        and scaled. Positions of another image size are interpolated, as timm does it.

        Returns:
            half a sentence about adapted weights, "" if there are none.

        Raises:
            UserError: weights are missing, left over or of another shape. Nothing is loaded then.
        """
        from timm.models import adapt_input_conv

        heads = self.model.pretrained_cfg.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        theirs = {k: v for k, v in weights.items() if k.rpartition(".")[0] not in heads}
        ours, adapted = self.model.state_dict(), list[str]()
        for k in self.first_convolutions:
            if k in ours and k in theirs and ours[k].ndim == theirs[k].ndim == 4:
                have, want = theirs[k].shape[1], ours[k].shape[1]
                if (have, want) == (3, self.channels) and have != want:
                    theirs[k] = adapt_input_conv(want, theirs[k])
                    adapted.append(f"adapted the first convolution from {have} channels to {want}")
                elif have != want and theirs[k].shape[2:] == ours[k].shape[2:]:
                    raise UserError(
                        f"The weights are for images of {have} channels, and {self.name} was asked for {want}: leave "
                        f"out in_chans, or set in_chans={have}. Only weights for 3 channels can be adapted."
                    )
        if positions := _resized(self.model, theirs, ours):
            theirs |= positions
            adapted.append(f"resized the positions to images of {self.test_size} pixels")
        wrong = [k for k in {**ours, **theirs} if k not in ours or k not in theirs or ours[k].shape != theirs[k].shape]
        if wrong:
            names = ", ".join(printable(k, 80) for k in wrong[:3])
            first = f"the first is {names}" if len(wrong) == 1 else f"the first are {names}"
            raise UserError(
                f"{len(wrong)} weights do not fit {self.name}'s {len(ours)} ({first}): {_seems(theirs, self.name)}."
            )
        self.model.load_state_dict(theirs)
        self.pretrained = True
        return " and ".join(adapted)


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Means or deviations for another number of channels: the average for one, else repeated, as timm repeats weights.

    >>> per_channel((1.0, 2.0, 3.0), 1), per_channel((1.0, 2.0, 3.0), 4)
    ((2.0,), (1.0, 2.0, 3.0, 1.0))
    """
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[i % len(values)] for i in range(channels))


_POSITIONS = ("pos_embed", "relative_position_bias_table")


def _resized(model: Any, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Positions of another image size, interpolated by timm's own function for this architecture, if it has one."""
    other = [
        k
        for k, v in theirs.items()
        if k.endswith(_POSITIONS) and k in ours and v.ndim == ours[k].ndim and v.shape != ours[k].shape
    ]
    convert = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
    if not other or convert is None:
        return {}
    found = convert(dict(theirs), model)
    return {k: found[k] for k in other if k in found and found[k].shape == ours[k].shape}


def _kept_rope(rope: Tensor, keep: Tensor) -> Tensor:
    """Rotary positions of the patches that are kept: of one table for all blocks, `n d`, or one for each of them."""
    index = keep.view(*keep.shape, 1)
    if rope.ndim == 2:  # to b 1 v d
        return take(rope.expand(len(keep), -1, -1), keep)[:, None]
    # depth, heads, n, d to depth, b, heads, v, d
    depth, heads, _, d = rope.shape
    index = index[None, :, None].expand(depth, -1, heads, -1, d)
    return rope[:, None].expand(-1, len(keep), -1, -1, -1).gather(3, index)


def _check_settings(name: str, settings: Mapping[str, Any]) -> None:
    for key in settings:
        if key in _FETCHING:
            raise UserError(f"Setting {key} of {name} is not taken: give weights to `load_weights`.")
        if key in _FIXED:
            raise UserError(f"Setting {key} of {name} cannot be changed: encoders take images and give features.")
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
        raise Unreachable(
            f"The weights of {name} are not in the cache and could not be downloaded{reason}: connect to the network, "
            "or run this once on a machine that is connected and set HF_HUB_CACHE to a copy of its cache."
        ) from e
    except Exception as e:  # constructors raise whatever they meet
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        wanted = f" with {given}" if given else ""
        raise UserError(f"timm cannot make the backbone {name}{wanted}: {why}") from e


def _set_epsilon(name: str, model: nn.Module, eps: object) -> None:
    """Set the epsilon of all layer norms, or of those in a part: (name of the part, epsilon)."""
    part, value = eps if isinstance(eps, tuple) and len(eps) == 2 else ("", eps)
    norms = [m for k, m in model.named_modules() if isinstance(m, nn.LayerNorm) and k.startswith(str(part))]
    if not isinstance(value, float) or not value >= 0 or not norms:
        raise UserError(f"Setting norm_eps of {name} must be a number, or the name of a part with layer norms and one.")
    for norm in norms:
        norm.eps = value


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
    model.conv1 = _conv(model.conv1.in_channels, width, 3, stride)
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
