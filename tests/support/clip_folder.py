"""Build tiny CLIP files in Hugging Face format.

They are a byte-pair tokenizer of CLIP's own kind and configurations to save beside it.
"""

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MERGES = [
    ("r", "e"),
    ("re", "d</w>"),
    ("b", "l"),
    ("bl", "u"),
    ("blu", "e</w>"),
    ("l", "e"),
    ("le", "f"),
    ("lef", "t</w>"),
]
"""Merges that make red, blue and left one token each; other words become letters."""
WIDTH = 32


def tokenizer():
    """Return a CLIPTokenizer.

    <|startoftext|> and <|endoftext|> have the two highest ids, as in CLIP.
    """
    from transformers import CLIPTokenizer

    pieces = [
        *LETTERS,
        *(c + "</w>" for c in LETTERS),
        *("".join(m) for m in MERGES),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=MERGES)


def pieces() -> dict:
    """Return the tokenizer in the form in which a model's assets hold it."""
    made = tokenizer()
    return {
        "tokenizer": made.backend_tokenizer.to_str(),
        "start": made.bos_token_id,
        "end": made.eos_token_id,
    }


def sizes(tokens, legacy: bool = False) -> dict[str, dict]:
    """Return a text and a vision configuration.

    With `legacy`, eos_token_id is 2, as in the first CLIP configurations, whatever the id in the
    tokenizer is.
    """
    plain = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    ends = {
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": 2 if legacy else tokens.eos_token_id,
        "pad_token_id": 1,
    }
    text = (
        plain
        | ends
        | {"vocab_size": len(tokens), "max_position_embeddings": 24, "projection_dim": 24}
    )
    return {"text_config": text, "vision_config": plain | {"image_size": 64, "patch_size": 16}}


def shake(model, seed: int = 0):
    """Change the weights until sentences and places differ by far more than rounding errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model
