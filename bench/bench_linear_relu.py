"""linear and linear_relu on layers of the 48x48 CNN, BERT, GPT-2, ViT and a perceptron."""

from pyops.cases import OPS
from pyops.certificate import Shape

from .command import main
from .harness import Bench

LINEAR = {
    "cnn48.fc1": dict(n=64, i=18432, o=512),
    "cnn48.fc2": dict(n=64, i=512, o=10),
    "bert-base.ffn1": dict(n=512, i=768, o=3072),
    "bert-base.ffn2": dict(n=512, i=3072, o=768),
    "gpt2.qkv": dict(n=1024, i=768, o=2304),
    "gpt2.decode": dict(n=1, i=768, o=3072),
    "vit-b16.proj": dict(n=788, i=768, o=768),
}
LINEAR_RELU = {
    "cnn48.fc1": LINEAR["cnn48.fc1"],
    "mlp.hidden": dict(n=256, i=512, o=512),
    "transformer.ffn1": dict(n=1024, i=512, o=2048),
}
LINEAR_ON_GPU = {
    "llama3-8b.ffn": dict(n=4096, i=4096, o=14336),
    "llama3-8b.qkv": dict(n=4096, i=4096, o=6144),
    "llama3-8b.decode": dict(n=8, i=4096, o=14336),
    "bert-large.ffn1": dict(n=8192, i=1024, o=4096),
    "bert-large.ffn2": dict(n=8192, i=4096, o=1024),
    "gpt2.qkv": dict(n=8192, i=768, o=2304),
    "vit-l16.proj": dict(n=12608, i=1024, o=1024),
    "square": dict(n=8192, i=8192, o=8192),
}
LINEAR_RELU_ON_GPU = {
    "transformer.ffn1": dict(n=16384, i=1024, o=4096),
    "mlp.hidden": dict(n=8192, i=2048, o=2048),
    "cnn48.fc1": dict(n=512, i=18432, o=512),
}


def flops(s: Shape) -> float:
    """Two for each multiply-add."""
    return float(2 * s["n"] * s["i"] * s["o"])


# Alone a linear layer is one call of cuBLAS in compiled code too.
BENCHES = [
    Bench(OPS["linear"], LINEAR, flops, gpu_shapes=LINEAR_ON_GPU, gpu_peers=("eager",)),
    Bench(OPS["linear_relu"], LINEAR_RELU, flops, gpu_shapes=LINEAR_RELU_ON_GPU),
]

if __name__ == "__main__":
    main(BENCHES)
