"""Tiny CLIP files in Hugging Face format: a byte-pair tokenizer of CLIP's own kind, and configurations to save beside it."""

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
"""red, blue and left are one piece each; other words fall into letters."""
WIDTH = 32


def tokenizer():
    """A CLIPTokenizer: <|startoftext|> and <|endoftext|> have the two highest ids, as in CLIP."""
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
    """The tokenizer as a model's assets hold it."""
    made = tokenizer()
    return {
        "tokenizer": made.backend_tokenizer.to_str(),
        "start": made.bos_token_id,
        "end": made.eos_token_id,
    }


def sizes(tokens, legacy: bool = False) -> dict[str, dict]:
    """Text and vision configuration; legacy: eos_token_id 2, as the first CLIP configurations say whatever the tokenizer's id is."""
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
    """Weights far enough from their initial ones that sentences and places differ well above rounding."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model
