"""Build tiny SigLIP folders in Hugging Face format: both towers and SigLIP 2's own tokenizer."""

import torch

from tests.support.clip_folder import shake

WIDTH, PATCH, CONTEXT = 32, 16, 24


def tokenizer(words: list[str]):
    """Return a Siglip2Tokenizer to which each word is one token; others become letters."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AddedToken, Siglip2Tokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    ids = {token: i for i, token in enumerate([*special, "▁", *"abcdefghijklmnopqrstuvwxyz"])}
    made = Siglip2Tokenizer(vocab=ids, merges=[])
    made.add_tokens([AddedToken(w, lstrip=True, single_word=True, normalized=False) for w in words])
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", ids["<eos>"])]
    )
    return made


def write(folder, words: list[str], kind: str = "Siglip", tokens=None):
    """Write a folder with random towers of 3 layers: kind Siglip, or Siglip2 for NaFlex."""
    import transformers

    tokens = tokens or tokenizer(words)
    torch.manual_seed(3)
    plain = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    sizes = {"image_size": 64} if kind == "Siglip" else {"num_patches": 16}
    config = getattr(transformers, f"{kind}Config")(
        text_config=plain | {"vocab_size": len(tokens), "max_position_embeddings": CONTEXT},
        vision_config=plain | sizes | {"patch_size": PATCH},
    )
    model = shake(getattr(transformers, f"{kind}Model")(config))
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder
