"""scaled_dot_product_attention as in BERT, GPT-2, ViT and Llama."""

from pyops.cases import OPS
from pyops.certificate import Shape

from .command import main
from .harness import Bench
from .peers import SDPA

LAYERS = {
    "bert-base": dict(b=4, h=12, l=384, s=384, d=64),
    "gpt2.prompt": dict(b=1, h=12, l=1024, s=1024, d=64, is_causal=True),
    "gpt2.decode": dict(b=4, h=12, l=1, s=1024, d=64),
    "vit-b16": dict(b=8, h=12, l=197, s=197, d=64),
    "llama3-8b.prompt": dict(b=1, h=32, l=512, s=512, d=128, kv_heads=8, is_causal=True),
    "long": dict(b=2, h=8, l=2048, s=2048, d=64),
    "masked": dict(b=4, h=8, l=512, s=512, d=64, mask=True),
}
# A mask of floats, as relative positions have it; queries that are a part of the keys' text.
MORE: dict[str, Shape] = {
    **{
        f"s{s}.d{d}{'.causal' * causal}": dict(
            b=max(1, 2048 // s), h=8, l=s, s=s, d=d, is_causal=causal
        )
        for s in (128, 512, 1024, 2048, 4096)
        for d in (32, 64, 128)
        for causal in (False, True)
    },
    "gpt2.decode.b1": dict(b=1, h=12, l=1, s=1024, d=64),
    "llama3-8b.decode": dict(b=4, h=32, l=1, s=2048, d=128, kv_heads=8),
    "llama3-8b.chunk": dict(b=1, h=32, l=128, s=1024, d=128, kv_heads=8),
    "masked.d32": dict(b=4, h=8, l=512, s=512, d=32, mask=True),
    "masked.d128": dict(b=2, h=8, l=1024, s=1024, d=128, mask=True),
    "transformer": dict(b=32, h=4, l=64, s=64, d=32, is_causal=True),
    "bert-large": dict(b=2, h=16, l=512, s=512, d=64),
}
# A reference in float64 with all its scores must fit too: long texts have few heads.
ON_GPU = {
    "llama3-8b.prompt": dict(b=1, h=32, l=4096, s=4096, d=128, kv_heads=8, is_causal=True),
    "gpt2.prompt": dict(b=8, h=12, l=1024, s=1024, d=64, is_causal=True),
    "bert-large": dict(b=32, h=16, l=512, s=512, d=64),
    "llama3-8b.decode": dict(b=32, h=32, l=1, s=4096, d=128, kv_heads=8),
    "masked": dict(b=16, h=12, l=512, s=512, d=64, mask=True),
    "vit-l16": dict(b=64, h=16, l=197, s=197, d=64),
    "long": dict(b=1, h=2, l=16384, s=16384, d=128),
    "long.causal": dict(b=1, h=2, l=16384, s=16384, d=128, is_causal=True),
}


def flops(s: Shape) -> float:
    """Both products; a causal mask asks for half of each."""
    product = 2 * s["b"] * s["h"] * s["l"] * s["s"] * s["d"]
    return float(product if s.get("is_causal") else 2 * product)


# Backward needs four products of the same size; computing the scores again is a choice. Compiled
# code calls the same function.
BENCHES = [
    Bench(
        OPS["scaled_dot_product_attention"], LAYERS, flops, backward=2.0, peers=("eager",),
        more=MORE, gpu_shapes=ON_GPU, gpu_peers=("eager", *SDPA),
    )
]  # fmt: skip

if __name__ == "__main__":
    main(BENCHES)
