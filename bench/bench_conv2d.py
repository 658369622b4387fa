"""conv2d and its fusions on layers of ResNet-50, VGG-16, MobileNetV2 and the 48x48 CNN."""

from pyops.cases import OPS
from pyops.certificate import Shape

from .command import main
from .harness import Bench

LAYERS = {
    "resnet50.conv1": dict(n=8, c=3, o=64, hw=224, k=7, stride=2, padding=3, bias=False),
    "resnet50.conv2_2": dict(n=8, c=64, o=64, hw=56, k=3, padding=1, bias=False),
    "resnet50.conv3_3": dict(n=8, c=128, o=512, hw=28, k=1, bias=False),
    "resnet50.conv5_2": dict(n=8, c=512, o=512, hw=7, k=3, padding=1, bias=False),
    "vgg16.conv3_1": dict(n=2, c=128, o=256, hw=56, k=3, padding=1),
    "mobilenetv2.depthwise": dict(n=8, c=144, o=144, hw=56, k=3, padding=1, groups=144, bias=False),
    "mobilenetv2.project": dict(n=8, c=144, o=24, hw=56, k=1, bias=False),
    "cnn48.conv1": dict(n=64, c=3, o=32, hw=48, k=3, padding=1),
    "cnn48.conv2": dict(n=64, c=32, o=64, hw=48, k=3, padding=1),
    "cnn48.conv3": dict(n=64, c=64, o=128, hw=24, k=3, padding=1),
}
ON_GPU = {
    "resnet50.conv2_2": dict(n=64, c=64, o=64, hw=56, k=3, padding=1, bias=False),
    "resnet50.conv1": dict(n=64, c=3, o=64, hw=224, k=7, stride=2, padding=3, bias=False),
    "resnet50.conv3_3": dict(n=64, c=128, o=512, hw=28, k=1, bias=False),
    "resnet50.conv4_2": dict(n=64, c=256, o=256, hw=14, k=3, padding=1, bias=False),
    "resnet50.conv5_2": dict(n=64, c=512, o=512, hw=7, k=3, padding=1, bias=False),
    "mobilenetv2.depthwise": LAYERS["mobilenetv2.depthwise"] | dict(n=64),
    "mobilenetv2.project": LAYERS["mobilenetv2.project"] | dict(n=64),
    "cnn48.conv2": LAYERS["cnn48.conv2"] | dict(n=512),
    "vgg16.conv3_1": LAYERS["vgg16.conv3_1"] | dict(n=32),
    "unet1024.conv1": dict(n=2, c=16, o=128, hw=1024, k=3, padding=1),
}
FUSED = {name: LAYERS[name] for name in ("cnn48.conv1", "cnn48.conv2", "vgg16.conv3_1")}
POOLED = {name: LAYERS[name] for name in ("cnn48.conv2", "cnn48.conv3")}


def flops(s: Shape) -> float:
    """Two for each multiply-add of the direct algorithm."""
    out = (s["hw"] + 2 * s.get("padding", 0) - s["k"]) // s.get("stride", 1) + 1
    taps = s["c"] // s.get("groups", 1) * s["k"] ** 2
    return float(2 * s["n"] * s["o"] * out**2 * taps)


FUSED_ON_GPU = {name: ON_GPU[name] for name in ("vgg16.conv3_1", "cnn48.conv2", "unet1024.conv1")}
POOLED_ON_GPU = {
    "vgg16.conv1_2": dict(n=16, c=64, o=64, hw=224, k=3, padding=1),
    "cnn48.conv2": ON_GPU["cnn48.conv2"],
}

# Alone a convolution is one call of cuDNN in compiled code too.
BENCHES = [
    Bench(OPS["conv2d"], LAYERS, flops, gpu_shapes=ON_GPU, gpu_peers=("eager", "channels_last")),
    Bench(OPS["conv2d_relu"], FUSED, flops, gpu_shapes=FUSED_ON_GPU),
    Bench(OPS["conv2d_relu_max_pool2d"], POOLED, flops, gpu_shapes=POOLED_ON_GPU),
]

if __name__ == "__main__":
    main(BENCHES)
