"""Read pretrained models of transformers, whole and in float32."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from aml.errors import UserError
from aml.models.options import WORDS

RANDOM_TEXT = f"{WORDS} for a random encoder"


def one_line(error: Exception) -> str:
    """Return an exception's text on one line, its class where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_weights(
    cls: Any,
    name: str,
    option: str,
    kinds: tuple[str, ...],
    settings: dict[str, Any] | None = None,
    *,
    instead: str = RANDOM_TEXT,
    **options: Any,
) -> Any:
    """Return a pretrained model of transformers in float32.

    Without a `dtype` transformers keeps the precision that the weights were saved in, and it fills
    weights that a folder lacks at random.

    Args:
        cls: Its class.
        name: A hub name or a local folder.
        option: The model option that names it, for messages.
        kinds: Types of models that will do.
        settings: Entries of its configuration to replace.
        instead: What else the option takes, for messages.
        options: Further arguments of the class.

    Raises:
        UserError: It is of another type, or lacks weights.
    """
    from transformers import AutoConfig

    config = fetched(
        lambda: AutoConfig.from_pretrained(name), name, option, "the configuration", instead
    )
    if config.model_type not in kinds:
        raise UserError(
            f"model.{option} {name!r} holds a model of type {config.model_type!r}, but "
            f"{' or '.join(kinds)} is wanted; give one of these, or {instead}"
        )
    if settings:
        config.update(settings)
        options["config"] = config
    model, found = fetched(
        lambda: cls.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **options),
        name,
        option,
        "the weights",
        instead,
    )
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"model.{option} {name!r} lacks {len(missing)} weights, first {missing[0]}; give a "
            f"folder that holds all of a {kinds[0]} model, or {instead}"
        )
    return model


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the weights that belong to other parts of a model, and progress, off the terminal."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def fetched(read: Callable, name: str, option: str, what: str, instead: str = RANDOM_TEXT) -> Any:
    """Return read(), or raise one sentence on why it failed.

    Args:
        read: Reads `what`.
        name: The folder or hub name, and `option` the model option that names it.
        option: See `name`.
        what: What is read, for the message.
        instead: What else the option takes, for the message.
    """
    try:
        return read()
    except Exception as error:  # hub, network and file libraries each raise their own
        raise UserError(
            f"model.{option} {name!r}: {what} cannot be had ({one_line(error)}); give a local "
            f"folder in Hugging Face format, a hub name where there is a network, or "
            f"{instead}"
        ) from None
