"""linear and linear_relu on layers of BERT, GPT-2, ViT, the networks' classifiers, and a grid."""

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
    "square": dict(n=2048, i=2048, o=2048),
}
LINEAR_RELU = {
    "cnn48.fc1": LINEAR["cnn48.fc1"],
    "mlp.hidden": dict(n=256, i=512, o=512),
    "transformer.ffn1": dict(n=1024, i=512, o=2048),
}
ROWS = (1, 4, 16, 64, 256, 1024, 4096)
WEIGHTS = (
    (256, 256), (768, 3072), (3072, 768), (1024, 1024), (4096, 4096), (18432, 512), (512, 18432),
)  # fmt: skip
GRID: dict[str, Shape] = {f"n{n}.i{i}.o{o}": dict(n=n, i=i, o=o) for i, o in WEIGHTS for n in ROWS}
CLASSIFIERS: dict[str, Shape] = {
    "vgg16.fc6": dict(n=8, i=25088, o=4096),
    "vgg16.fc7": dict(n=8, i=4096, o=4096),
    "alexnet.fc6": dict(n=32, i=9216, o=4096),
    "cnn48.fc1.n1": dict(n=1, i=18432, o=512),
    "cnn48.fc1.n16": dict(n=16, i=18432, o=512),
}
HEADS: dict[str, Shape] = {
    "resnet50.fc": dict(n=64, i=2048, o=1000),
    "mobilenetv2.fc": dict(n=64, i=1280, o=1000),
    "gpt2.ffn1": dict(n=1024, i=768, o=3072),
    "gpt2.logits": dict(n=16, i=768, o=50257),
    "bert-large.ffn1": dict(n=512, i=1024, o=4096),
    "vit-b16.ffn1": dict(n=1576, i=768, o=3072),
    "llama3-8b.decode": dict(n=1, i=4096, o=14336),
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


# Alone a linear layer is one call of the same library in compiled code too.
BENCHES = [
    Bench(
        OPS["linear"], LINEAR, flops, peers=("eager",), more=GRID | CLASSIFIERS | HEADS,
        gpu_shapes=LINEAR_ON_GPU, gpu_peers=("eager",),
    ),
    Bench(
        OPS["linear_relu"], LINEAR_RELU, flops, more=GRID | CLASSIFIERS,
        gpu_shapes=LINEAR_RELU_ON_GPU,
    ),
]  # fmt: skip

if __name__ == "__main__":
    main(BENCHES)
