"""Encoder-decoder transformer for sequence to sequence tasks.

Vaswani et al., "Attention Is All You Need", 2017, with learned positions.
"""

from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Embedding, Module, ModuleList


class Seq2SeqTransformer(Module):
    """Next-token scores of a target given a source; one vocabulary for both."""

    def __init__(
        self,
        nn: ModuleType,
        vocabulary: int,
        dim: int = 128,
        heads: int = 4,
        layers: int = 2,
        feedforward: int = 512,
        dropout: float = 0.1,
        max_length: int = 128,
    ) -> None:
        super().__init__()
        self.tokens = Embedding(vocabulary, dim)
        self.positions = Embedding(max_length, dim)
        shape = (dim, heads, feedforward, dropout)
        self.encoder = ModuleList(
            nn.TransformerEncoderLayer(*shape, batch_first=True) for _ in range(layers)
        )
        self.decoder = ModuleList(
            nn.TransformerDecoderLayer(*shape, batch_first=True) for _ in range(layers)
        )
        self.head = nn.Linear(dim, vocabulary)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Scores (N, L, vocabulary) of the token after each of `target`.

        Token ids `source` (N, S) and `target` (N, L), both at most `max_length` long. The scores at
        a position depend on the whole source and on the target up to that position.
        """
        memory = self._embed(source)
        for layer in self.encoder:
            memory = layer(memory)
        length = target.size(1)
        future = torch.ones(length, length, dtype=torch.bool, device=target.device).triu(1)
        x = self._embed(target)
        for layer in self.decoder:
            x = layer(x, memory, tgt_mask=future, tgt_is_causal=True)
        scores: Tensor = self.head(x)
        return scores

    def _embed(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.size(1), device=ids.device)
        embedded: Tensor = self.tokens(ids) + self.positions(positions)
        return embedded
