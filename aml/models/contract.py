"""Check that a model class keeps the interface: shapes, tokens, features, gradients, rebuilding.

The test suite runs these checks on the models of this project; `check` runs them on one's own.
"""

import json
from collections.abc import Iterator
from fractions import Fraction
from itertools import zip_longest
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from aml.errors import UserError
from aml.models.base import Features, Model, find_class
from aml.models.own import options_to_dict, own_options
from aml.models.registry import build_model

VOCABULARY = ["left", "red", "circle", "blue", "right", "square", "the", "of"]

SENTENCES = ["left red circle", "the blue square right of the circle", "square"]

WORDS = (3, 7, 1)
"""Words of each of the sentences."""

SOURCES = ("encoder", "joint", "prediction")


def check(model: str | type[Model], **options: Any) -> list[str]:
    """Return one sentence for each thing that a model lacks; none where it keeps the interface.

    The model is built with random weights and run on small random images.

    Args:
        model: A model's name, or its class.
        options: The model's options, without which the defaults are used; small ones are faster.
    """
    try:
        cls = find_class(model) if isinstance(model, str) else model
        if not (isinstance(cls, type) and issubclass(cls, Model)):
            return [f"{cls} is not derived from aml.models.Model; derive it from that class"]
        torch.manual_seed(0)
        built = _build(model, options).eval()
    except UserError as error:
        return [str(error)]
    except Exception as error:
        return [f"the model cannot be built: {_text(error)}"]
    found: list[str] = []
    for part in (
        _declarations,
        _normalise,
        _tokens,
        _logits,
        _reading,
        _batch,
        _levels,
        _features,
        _gradients,
        _rebuilding,
    ):
        try:
            with torch.random.fork_rng(devices=[]):
                found += part(built)
        except Exception as error:
            found.append(f"the check of its {part.__name__.strip('_')} failed: {_text(error)}")
    return found


def _build(model: str | type[Model], options: dict[str, Any], assets: dict | None = None) -> Model:
    if isinstance(model, str):
        return build_model(model, vocabulary=VOCABULARY, assets=assets, **options)
    name = f"{model.__module__}:{model.__qualname__}"
    built = model(own_options(name, model, options), VOCABULARY, assets)
    built.spec = {"name": name, **options_to_dict(built.options)}
    return built


def _text(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _inputs(model: Model, height: int = 64, width: int = 64) -> tuple[torch.Tensor, ...]:
    """Return normalised images, tokens, token_mask; sides are rounded up to what it takes."""
    multiple = model.image_multiple
    sides = [-(-side // multiple) * multiple for side in (height, width)]
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(
        0, 256, (len(SENTENCES), 3, *sides), generator=generator, dtype=torch.uint8
    )
    return model.normalise(image), *model.tokenise(SENTENCES)


def _declarations(model: Model) -> Iterator[str]:
    cls = type(model)
    if not set(cls.sources) <= set(SOURCES) or "prediction" not in cls.sources:
        yield f"sources is {cls.sources}; it must hold prediction, and of {SOURCES} only"
    if not (isinstance(model.image_multiple, int) and model.image_multiple >= 1):
        yield f"image_multiple is {model.image_multiple!r}; it must be a whole number from 1 on"
    if model.vocabulary != VOCABULARY:
        yield "vocabulary is not the one it was given; call super().__init__ with all arguments"
    names = [name for name, _ in model.named_parameters()]
    for prefix in (*model.encoders, *model.no_decay):
        if not any(name.startswith(prefix) for name in names):
            yield f"encoders or no_decay names {prefix}, with which no parameter begins"
    model.train()
    if any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
        yield (
            "it trains with batch normalisation, whose result depends on the batch; use GroupNorm "
            "or LayerNorm, or keep its layers in eval mode"
        )
    model.eval()
    if not hasattr(model, "word_ids"):
        yield "word_ids is missing; set it to first and end of the tokens that are words"
        return
    first, end = model.word_ids
    if not first < end or set(range(first, end)) & set(model.special_tokens):
        yield f"word_ids is {model.word_ids}; it must be a range without special_tokens"
    if model.mask_token is not None and model.mask_token not in model.special_tokens:
        yield f"mask_token {model.mask_token} is missing in special_tokens"


def _normalise(model: Model) -> Iterator[str]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    x = model.normalise(image)
    if x.shape != image.shape or not x.is_floating_point():
        yield f"normalise gives {x.dtype} {tuple(x.shape)}; it must give float of the image's shape"
    elif not (x.mean().abs() < 0.5 and x.min() < 0 < x.max()):
        yield "normalise does not centre pictures; subtract their mean and divide by their spread"


def _tokens(model: Model) -> Iterator[str]:
    longest = " ".join(["red"] * 5000)
    tokens, mask = model.tokenise([*SENTENCES, "zebra", "", longest])
    if tokens.dtype != torch.int64 or mask.dtype != torch.bool or tokens.shape != mask.shape:
        yield (
            f"tokenise gives {tokens.dtype} {tuple(tokens.shape)} and {mask.dtype} "
            f"{tuple(mask.shape)}; it must give int64 and bool of one shape (B, L)"
        )
        return
    if (mask.long().diff(dim=1) > 0).any():
        yield "tokenise puts padding before tokens; put it last"
    if not mask[5].all():
        yield "tokenise does not fill its length with a long sentence; cut it there"
    if not mask[4].sum() < mask[3].sum():
        yield "tokenise drops a word that it does not know; give it a token"
    alone = model.tokenise([SENTENCES[1]])[0]
    if alone.shape[1] != tokens.shape[1] or not torch.equal(alone[0], tokens[1]):
        yield "tokenise gives a sentence other tokens by itself than in a batch; L must be fixed"
    if torch.equal(model.tokenise(["red"])[0], model.tokenise(["blue"])[0]):
        yield "tokenise gives red and blue the same tokens"
    if model.mask_token is not None and (tokens == model.mask_token).any():
        yield "tokenise uses mask_token in a sentence"
    words = [
        sum(token not in model.special_tokens for token in row[kept].tolist())
        for row, kept in zip(tokens[:3], mask[:3], strict=True)
    ]
    if tuple(words) != WORDS:
        yield f"{words} tokens of {SENTENCES} are not in special_tokens; there are {WORDS} words"


@torch.no_grad()
def _logits(model: Model) -> list[str]:
    found = []
    shares = set()
    for scale in [(4, 4), (3, 5), (7, 7)]:
        height, width = (
            model.image_multiple * s * (16 // model.image_multiple or 1) for s in scale
        )
        logits = model(*_inputs(model, height, width))
        if logits.ndim != 3 or len(logits) != len(SENTENCES):
            return [f"logits have the shape {tuple(logits.shape)}; it must be (B, h, w)"]
        if not logits.isfinite().all():
            found.append(f"logits of {height} x {width} pixels are not finite")
        shares |= {Fraction(logits.shape[1], height), Fraction(logits.shape[2], width)}
    if len(shares) > 1:
        found.append("logits are no fixed share of the image's sides, whatever its shape")
    x = _inputs(model)
    if not torch.equal(model(*x), model(*x)):
        found.append("logits differ from call to call in eval mode")
    return found


@torch.no_grad()
def _reading(model: Model) -> Iterator[str]:
    x, tokens, mask = _inputs(model)
    logits = model(x, tokens, mask)
    if torch.allclose(model(x, tokens[[1, 2, 0]], mask[[1, 2, 0]]), logits, atol=1e-4):
        yield "logits do not depend on the sentence"
    if not torch.allclose(model(x, torch.where(mask, tokens, 5), mask), logits, atol=1e-5):
        yield "logits depend on tokens in the padding; token_mask says what may be read"


@torch.no_grad()
def _batch(model: Model) -> Iterator[str]:
    inputs = _inputs(model)
    together = model(*inputs)
    for i in range(len(SENTENCES)):
        alone = model(*(t[i : i + 1] for t in inputs))[0]
        if not torch.allclose(alone, together[i], atol=1e-4):
            yield "logits of a sample depend on the other samples of its batch"
            return


@torch.no_grad()
def _levels(model: Model) -> list[str]:
    """Check encode, decode, visible and upto."""
    if model.fuses:
        own = {"encode", "decode"} & {name for c in _own(model) for name in vars(c)}
        return [f"fuses is true, but it has {', '.join(sorted(own))}; drop them"] if own else []
    found = []
    x, tokens, mask = _inputs(model)
    logits = model(x, tokens, mask)
    visible = torch.ones(len(x), *x.shape[2:], dtype=torch.bool)
    if not torch.equal(model.decode(model.encode(x), tokens, mask), logits):
        found.append("decode(encode(x), tokens, token_mask) is not what forward gives")
    if not torch.equal(model(x, tokens, mask, visible), logits):
        found.append("a forward pass with everything visible is not the plain one")
    visible[:, :32] = False
    if torch.allclose(model(x, tokens, mask, visible), logits, atol=1e-4):
        found.append("hiding places of the maps (visible) changes nothing")
    if model.drops:
        found += _dropping(model)
    for source in set(model.sources) - {"prediction"}:
        alone = model.features(x, tokens, mask, upto=source)
        again, features = model(x, tokens, mask, upto=source)
        pairs = zip_longest(features, alone)
        if not torch.equal(again, logits) or not all(torch.equal(a, b) for a, b in pairs):
            found.append(f"forward(..., upto={source!r}) gives other features than features")
    return found


@torch.no_grad()
def _dropping(model: Model) -> Iterator[str]:
    """Check encode_visible with the first row of patches hidden, and with none."""
    x, tokens, mask = _inputs(model)
    logits = model(x, tokens, mask)
    visible = torch.ones(len(x), *x.shape[2:], dtype=torch.bool)
    if not torch.allclose(model(x, tokens, mask, visible, drop=True), logits, atol=1e-4):
        yield "encode_visible of a wholly visible image is not what encode gives"
    visible[:, : model.image_multiple] = False
    dropped = model(x, tokens, mask, visible, drop=True)
    other = torch.where(visible[:, None], x, x.flip(0))
    if not torch.allclose(model(other, tokens, mask, visible, drop=True), dropped, atol=1e-5):
        yield "encode_visible reads hidden patches; leave them out"
    if torch.allclose(dropped, logits, atol=1e-4):
        yield "hiding patches from encode_visible changes nothing"


def _own(model: Model) -> list[type]:
    """Return the classes of a model below `Model`."""
    return [c for c in type(model).__mro__ if issubclass(c, Model) and c is not Model]


@torch.no_grad()
def _features(model: Model) -> Iterator[str]:
    x, tokens, mask = _inputs(model, 96, 64)
    for source in model.sources:
        if source == "prediction":
            continue
        f = model.features(x, tokens, mask, upto=source)
        if not isinstance(f, Features):
            yield f"features(upto={source!r}) gives {type(f).__name__}; return aml.models.Features"
            continue
        if f.visual.ndim != 4 or len(f.visual) != len(x) or f.text.shape[:2] != tokens.shape:
            yield (
                f"features(upto={source!r}) has shapes {tuple(f.visual.shape)} and "
                f"{tuple(f.text.shape)}; they must be (B, D, h, w) and (B, L, D)"
            )
            continue
        if x.shape[2] * f.visual.shape[3] != x.shape[3] * f.visual.shape[2]:
            yield f"the map of features(upto={source!r}) has not the shape of the image"
        if not (f.visual.isfinite().all() and f.text.isfinite().all()):
            yield f"features(upto={source!r}) are not finite"
        elif not f.visual.flatten(2).std(2).mean() > 0:
            yield f"the map of features(upto={source!r}) is constant"
        if source == "joint" and f.visual.shape[1] != f.text.shape[2]:
            yield "the features at joint differ in width; the model multiplies them"
        yield from _roles(f, mask, source)


def _roles(f: Features, mask: torch.Tensor, source: str) -> Iterator[str]:
    if f.words.dtype != torch.bool or f.pooled.dtype != torch.bool:
        yield f"words and pooled of features(upto={source!r}) are not bool"
        return
    if (f.pooled.sum(1) != 1).any() or (f.words & f.pooled).any():
        yield f"pooled of features(upto={source!r}) must be one token a sentence that is no word"
    if (f.words & ~mask).any() or tuple(f.words.sum(1).tolist()) != WORDS:
        yield (
            f"words of features(upto={source!r}) names {f.words.sum(1).tolist()} tokens of "
            f"sentences of {list(WORDS)} words"
        )


def _gradients(model: Model) -> list[str]:
    model.zero_grad()
    model(*_inputs(model)).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None and p.requires_grad]
    model.zero_grad()
    if not any(p.requires_grad for p in model.parameters()):
        return ["no parameter can be trained"]
    if without:
        return [
            f"{len(without)} parameters get no gradient, first {without[0]}; use them, or set "
            "requires_grad to False"
        ]
    return []


@torch.no_grad()
def _rebuilding(model: Model) -> Iterator[str]:
    try:
        spec = json.loads(json.dumps(model.spec))
        assets = json.loads(json.dumps(model.assets))
    except (TypeError, ValueError) as error:
        yield f"options or assets are not JSON, which a checkpoint keeps: {_text(error)}"
        return
    name = spec.pop("name")
    again = _again(model, name, spec, assets)
    missing, unexpected = again.load_state_dict(model.state_dict(), strict=False)
    if missing or unexpected:
        yield f"built again it has other parameters, first {[*missing, *unexpected][0]}"
        return
    x = _inputs(model)
    if not torch.equal(again.eval()(*x), model(*x)):
        yield (
            "built again from its options and assets, with the same weights, it gives other "
            "logits; keep what it needs besides in assets, or as buffers"
        )


def _again(model: Model, name: str, spec: dict[str, Any], assets: dict[str, Any]) -> nn.Module:
    cls = type(model)
    own = cls.Options is not None
    return _build(cls if own else name, spec, assets or None)
