"""The text tower of a CLIP file that holds the whole CLIP: the partner of its picture tower, for CLIP-T.

FlexIP itself never reads it: prompts come from the base model's own text encoder, whose hidden states lie in another
space than the CLIP embedding of a picture.

Letters: B texts, C embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..common.errors import FlexIPError
from ..files.parts import Parts, check_parts, read_parts
from ..files.safefile import Header, read_header
from .formats import TEXT_FORMATS, find_parts
from .weights import assign_weights

HEAD_WIDTH = 64
"""Of every published CLIP text tower; a file does not tell it."""
LAYER = "transformer.resblocks."


class TextEncoder(nn.Module):
    """open_clip's `TextTransformer` with its tokenizer, whose vocabulary comes with the library.

    Attributes:
        width: C.
    """

    def __init__(self, parts: Parts, header: Header) -> None:
        super().__init__()
        from open_clip.tokenizer import SimpleTokenizer
        from open_clip.transformer import TextTransformer

        vocabulary, width = parts["token_embedding.weight"].shape(header)
        self.length, self.width = (
            parts["positional_embedding"].shape(header)[0],
            parts["text_projection"].shape(header)[1],
        )
        self.tower = TextTransformer(
            context_length=self.length,
            vocab_size=vocabulary,
            width=width,
            heads=width // HEAD_WIDTH,
            layers=1 + max(int(name.removeprefix(LAYER).split(".")[0]) for name in parts if name.startswith(LAYER)),
            mlp_ratio=parts[f"{LAYER}0.mlp.c_fc.bias"].shape(header)[0] / width,
            output_dim=self.width,
        )
        self.tokenizer = SimpleTokenizer()

    def forward(self, texts: Sequence[str]) -> Tensor:
        """The projected embeddings (B, C), not normalized, in the weights' dtype; a text is cut at the tower's length.

        Only the tower's own causal mask acts; the embedding is that of the text's last token.
        """
        tokens = self.tokenizer(list(texts), self.length)
        found: Tensor = self.tower(tokens.to(self.tower.positional_embedding.device))
        return found


def load_text(path: str | Path) -> TextEncoder | None:
    """The text tower of a CLIP file, memory-mapped, on the CPU, in the file's dtype; None where the file holds none.

    Formats: open_clip's whole model, transformers' `CLIPModel`.

    Raises:
        FlexIPError: no such file, a pickle, a damaged file (`safefile.read_header`); a tower of another structure, or
            one that does not end in the vocabulary of CLIP's tokenizer; missing, extra, quantized or NaN tensors.
    """
    path = Path(path)
    header = read_header(path)
    parts = find_parts(header, TEXT_FORMATS)
    if parts is None:
        return None
    try:
        with torch.device("meta"):
            encoder = TextEncoder(parts, header)
    except Exception as error:  # sizes that the file brought, and that no tower has
        raise FlexIPError(f"{path} holds a text tower that is not CLIP's ({error!r}); use OpenCLIP ViT-H/14") from error
    if encoder.tower.vocab_size != encoder.tokenizer.vocab_size:
        raise FlexIPError(
            f"{path} holds a text tower of {encoder.tower.vocab_size} tokens; expected the "
            f"{encoder.tokenizer.vocab_size} of CLIP's tokenizer: use OpenCLIP ViT-H/14"
        )
    dtype = check_parts(path, header, parts, encoder.tower)
    assign_weights(encoder.tower, read_parts(path, parts), dtype)
    encoder.tower.attn_mask = encoder.tower.build_causal_mask()  # no weight, so it stayed without values on `meta`
    return encoder.eval()
