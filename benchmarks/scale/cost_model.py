"""Tokens/s and memory of training an adapter on a frozen decoder, from the model's shape alone.

A frozen weight matrix of `n` numbers costs `2n` floating-point operations per token forward and `2n` backward (the gradient of its
input; it has none of its own), and `2n` more where activations are computed again. Attention adds `2 s` products of the width of
its heads per token and layer, forward.
"""

from __future__ import annotations

from dataclasses import dataclass

ADAPTER_BYTES = 16  # per trained number: weight, gradient and two moments of AdamW, float32
BYTES = {"float32": 4.0, "bfloat16": 2.0, "4bit": 0.53}  # per base weight; 4 bits with the scales of NF4, doubly quantised


@dataclass(frozen=True)
class Shape:
    """A decoder: layers, widths (hidden, feed-forward), heads, key-value heads, vocabulary; `tied` embeddings are stored once."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = True
    head_width: int = 0

    @property
    def attention(self) -> int:
        """Width of all query heads."""
        return self.heads * (self.head_width or self.hidden // self.heads)

    @property
    def keys(self) -> int:
        """Width of the key heads, and of the value heads."""
        return self.kv_heads * (self.head_width or self.hidden // self.heads)

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of a layer."""
        return self.hidden * (2 * self.attention + 2 * self.keys + 3 * self.feed_forward)

    @property
    def matrices(self) -> int:
        """Numbers in the matrices that every token is multiplied with: the layers and the output layer."""
        return self.layers * self.layer_weights + self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """Of the whole model, norms and biases left out."""
        return self.matrices + (0 if self.tied else self.hidden * self.vocabulary)

    def flops(self, length: int, *, checkpointing: bool = False) -> float:
        """Floating-point operations per token of a training step, in sequences of `length` tokens."""
        passes = 3 if checkpointing else 2
        attention = 2 * length * self.attention * self.layers
        return passes * (2.0 * self.matrices + attention) + attention  # attention's backward pass is twice its forward pass

    def activations(self, *, width: int, checkpointing: bool = False) -> float:
        """Bytes per token that wait for the backward pass, without the logits; `width` bytes per number."""
        kept = 3 * self.hidden + 2 * self.attention + 2 * self.keys + 3 * self.feed_forward
        numbers = self.layers * self.hidden + kept if checkpointing else self.layers * kept
        return float(numbers * width)

    def logits(self) -> float:
        """Bytes per labelled token: logits, their log-softmax and the gradients of both, in float32."""
        return 16.0 * self.vocabulary

    def memory(
        self, *, base: str, trained: int, tokens: int, labelled: int, width: int, checkpointing: bool = False, shards: int = 1
    ) -> float:
        """Bytes on one device: base weights and adapter shared out among `shards` (FSDP2, two layers gathered), own activations."""
        embeddings = self.hidden * self.vocabulary * (1 if self.tied else 2)
        per_weight = BYTES[base]
        stored = self.layers * self.layer_weights * per_weight + embeddings * max(per_weight, 2.0)
        gathered = 0.0 if shards == 1 else 2 * self.layer_weights * per_weight + embeddings * max(per_weight, 2.0)
        state = (stored + ADAPTER_BYTES * trained) / shards + gathered
        return state + tokens * self.activations(width=width, checkpointing=checkpointing) + labelled * self.logits()

    def gathered_bytes(self, base: str) -> float:
        """Bytes of weights that FSDP2 sends to each device in a step: for the forward and for the backward pass."""
        return 2 * self.parameters * max(BYTES[base], 2.0)


SHAPES = {
    "SmolLM2-135M": Shape(30, 576, 1536, 9, 3, 49_152),
    "SmolLM2-360M": Shape(32, 960, 2560, 15, 5, 49_152),
    "Qwen2.5-0.5B": Shape(24, 896, 4864, 14, 2, 151_936),
    "Qwen2.5-1.5B": Shape(28, 1536, 8960, 12, 2, 151_936),
    "Qwen2.5-7B": Shape(28, 3584, 18_944, 28, 4, 152_064, tied=False),
    "Qwen2.5-14B": Shape(48, 5120, 13_824, 40, 8, 152_064, tied=False),
    "Qwen2.5-32B": Shape(64, 5120, 27_648, 40, 8, 152_064, tied=False),
    "Llama-3-70B": Shape(80, 8192, 28_672, 64, 8, 128_256, tied=False),
}
"""Shapes as their public config.json files have them."""
