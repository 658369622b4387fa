"""conv2d and its fusions on the layers of image networks, from ResNet-50 to the 48x48 CNN."""

from collections.abc import Mapping

from pyops.cases import OPS
from pyops.certificate import Shape

from .command import main
from .harness import Bench

Layer = tuple[int, ...]
"""c, o, hw, k, then stride and groups where they are not 1; the padding is half of k."""

RESNET50: dict[str, Layer] = {
    "conv1": (3, 64, 224, 7, 2),
    "conv2_1": (64, 64, 56, 1), "conv2_2": (64, 64, 56, 3), "conv2_3": (64, 256, 56, 1),
    "conv2_4": (256, 64, 56, 1), "conv3_down": (256, 512, 56, 1, 2), "conv3_1": (256, 128, 56, 1),
    "conv3_2": (128, 128, 56, 3, 2), "conv3_3": (128, 512, 28, 1), "conv3_4": (512, 128, 28, 1),
    "conv3_5": (128, 128, 28, 3), "conv4_2": (256, 256, 14, 3), "conv4_3": (256, 1024, 14, 1),
    "conv4_4": (1024, 256, 14, 1), "conv5_1": (1024, 512, 14, 1), "conv5_2": (512, 512, 7, 3),
    "conv5_3": (512, 2048, 7, 1), "conv5_4": (2048, 512, 7, 1),
}  # fmt: skip
VGG16: dict[str, Layer] = {
    "conv1_1": (3, 64, 224, 3), "conv1_2": (64, 64, 224, 3), "conv2_1": (64, 128, 112, 3),
    "conv2_2": (128, 128, 112, 3), "conv3_1": (128, 256, 56, 3), "conv3_2": (256, 256, 56, 3),
    "conv4_1": (256, 512, 28, 3), "conv4_2": (512, 512, 28, 3), "conv5_1": (512, 512, 14, 3),
}  # fmt: skip
MOBILENETV2: dict[str, Layer] = {
    "conv1": (3, 32, 224, 3, 2), "depthwise1": (32, 32, 112, 3, 1, 32),
    "expand2": (16, 96, 112, 1), "depthwise2": (96, 96, 112, 3, 2, 96), "expand": (24, 144, 56, 1),
    "depthwise": (144, 144, 56, 3, 1, 144), "project": (144, 24, 56, 1),
    "depthwise3": (144, 144, 56, 3, 2, 144), "expand4": (32, 192, 28, 1),
    "depthwise4": (192, 192, 28, 3, 1, 192), "depthwise5": (384, 384, 14, 3, 1, 384),
    "project5": (384, 96, 14, 1), "depthwise7": (960, 960, 7, 3, 1, 960),
    "project7": (960, 320, 7, 1), "conv9": (320, 1280, 7, 1),
}  # fmt: skip
EFFICIENTNET_B0: dict[str, Layer] = {
    "depthwise3": (144, 144, 56, 5, 2, 144), "depthwise3_2": (240, 240, 28, 5, 1, 240),
    "depthwise4": (240, 240, 28, 3, 2, 240), "depthwise5": (480, 480, 14, 5, 1, 480),
    "depthwise6": (672, 672, 14, 5, 2, 672), "depthwise6_2": (1152, 1152, 7, 5, 1, 1152),
}  # fmt: skip
CONVNEXT_TINY: dict[str, Layer] = {
    "depthwise1": (96, 96, 56, 7, 1, 96), "depthwise2": (192, 192, 28, 7, 1, 192),
    "depthwise3": (384, 384, 14, 7, 1, 384), "depthwise4": (768, 768, 7, 7, 1, 768),
}  # fmt: skip
CNN48: dict[str, Layer] = {
    "conv1": (3, 32, 48, 3), "conv2": (32, 64, 48, 3), "conv3": (64, 128, 24, 3),
}  # fmt: skip
UNET: dict[str, Layer] = {
    "down1": (3, 64, 256, 3), "down2": (64, 128, 128, 3), "up4": (128, 64, 256, 3),
}  # fmt: skip
DIFFUSION: dict[str, Layer] = {
    "down1": (16, 16, 28, 3), "down2": (16, 32, 14, 3), "up2": (64, 16, 14, 3),
}  # fmt: skip
# Where the padding is not half of the kernel.
ALEXNET: dict[str, Shape] = {
    "alexnet.conv1": dict(n=8, c=3, o=64, hw=224, k=11, stride=4, padding=2),
    "alexnet.conv2": dict(n=8, c=64, o=192, hw=27, k=5, padding=2),
    "alexnet.conv3": dict(n=8, c=192, o=384, hw=13, k=3, padding=1),
}
PATCHES: dict[str, Shape] = {"vit-b16.patches": dict(n=8, c=3, o=768, hw=224, k=16, stride=16)}


def layers(network: str, table: Mapping[str, Layer], n: int, bias: bool = True) -> dict[str, Shape]:
    """The layers of a network on `n` images."""
    named: dict[str, Shape] = {}
    for name, (c, o, hw, k, *rest) in table.items():
        stride, groups = (*rest, 1, 1)[:2]
        sizes = dict(n=n, c=c, o=o, hw=hw, k=k, stride=stride, padding=k // 2, groups=groups)
        named[f"{network}.{name}"] = sizes | {"bias": bias}
    return named


def on(n: int, shapes: Mapping[str, Shape], *names: str) -> dict[str, Shape]:
    """The named ones of `shapes` on another number of images."""
    return {f"{name}.n{n}": {**shapes[name], "n": n} for name in names}


def take(shapes: Mapping[str, Shape], *names: str) -> dict[str, Shape]:
    """The named ones of `shapes`."""
    return {name: shapes[name] for name in names}


# With a batch norm behind it a convolution has no bias and its ReLU comes later.
ALONE = {
    **layers("resnet50", RESNET50, 8, bias=False),
    **layers("mobilenetv2", MOBILENETV2, 8, bias=False),
    **layers("efficientnet-b0", EFFICIENTNET_B0, 8, bias=False),
    **layers("convnext-tiny", CONVNEXT_TINY, 8),
    **layers("unet", UNET, 1),
    **layers("diffusion", DIFFUSION, 32),
    **ALEXNET,
    **PATCHES,
}
# The same with the norm folded into it for inference, and networks without norms.
FUSED = {
    **layers("resnet50", RESNET50, 8),
    **layers("vgg16", VGG16, 2),
    **layers("mobilenetv2", MOBILENETV2, 8),
    **layers("cnn48", CNN48, 64),
    **layers("unet", UNET, 1),
    **ALEXNET,
}
POOLED = {
    **layers("cnn48", {name: CNN48[name] for name in ("conv2", "conv3")}, 64),
    **layers("vgg16", {name: VGG16[name] for name in ("conv1_2", "conv2_2", "conv5_1")}, 1),
    "alexnet.conv1": {**ALEXNET["alexnet.conv1"], "kernel_size": 3, "pool_stride": 2},
}
MORE_ON_GPU = ("resnet50.conv1", "resnet50.conv4_2", "mobilenetv2.project")
BATCHES = ("resnet50.conv2_2", "resnet50.conv3_3", "resnet50.conv5_2", "mobilenetv2.depthwise")
ALONE |= on(1, ALONE, *BATCHES, "resnet50.conv1") | on(64, ALONE, *BATCHES)
FUSED |= on(1, FUSED, *BATCHES, "vgg16.conv3_1", "cnn48.conv2") | on(64, FUSED, *BATCHES)
POOLED |= on(1, POOLED, "cnn48.conv2") | on(8, POOLED, "vgg16.conv2_2")

ON_GPU: dict[str, Shape] = {
    **{name: {**ALONE[name], "n": 64} for name in (*BATCHES, *MORE_ON_GPU)},
    "cnn48.conv2": {**FUSED["cnn48.conv2"], "n": 512},
    "vgg16.conv3_1": {**FUSED["vgg16.conv3_1"], "n": 32},
    "unet1024.conv1": dict(n=2, c=16, o=128, hw=1024, k=3, padding=1),
}
POOLED_ON_GPU: dict[str, Shape] = {
    "vgg16.conv1_2": {**POOLED["vgg16.conv1_2"], "n": 16},
    "cnn48.conv2": ON_GPU["cnn48.conv2"],
}


def flops(s: Shape) -> float:
    """Two for each multiply-add of the direct algorithm."""
    out = (s["hw"] + 2 * s.get("padding", 0) - s["k"]) // s.get("stride", 1) + 1
    taps = s["c"] // s.get("groups", 1) * s["k"] ** 2
    return float(2 * s["n"] * s["o"] * out**2 * taps)


def fewest(s: Shape) -> float:
    """Winograd's F(2x2, 3x3) makes four results by 16 products each instead of 36."""
    by_winograd = s["k"] == 3 and s.get("stride", 1) == 1 and s.get("groups", 1) == 1
    return 16 / 36 if by_winograd else 1.0


# Alone a convolution is one call of cuDNN in compiled code too.
BENCHES = [
    Bench(
        OPS["conv2d"],
        take(
            ALONE, "resnet50.conv1", "resnet50.conv2_2", "resnet50.conv3_3", "resnet50.conv5_2",
            "mobilenetv2.depthwise", "mobilenetv2.depthwise5", "mobilenetv2.project",
            "convnext-tiny.depthwise3",
        ),
        flops, fewest, more=ALONE, gpu_shapes=ON_GPU, gpu_peers=("eager", "channels_last"),
    ),
    Bench(
        OPS["conv2d_relu"],
        take(
            FUSED, "resnet50.conv4_2", "vgg16.conv3_1", "mobilenetv2.depthwise", "cnn48.conv1",
            "cnn48.conv2",
        ),
        flops, fewest, more=FUSED,
        gpu_shapes=take(ON_GPU, "vgg16.conv3_1", "cnn48.conv2", "unet1024.conv1"),
    ),
    Bench(
        OPS["conv2d_relu_max_pool2d"], take(POOLED, "cnn48.conv2", "cnn48.conv3"), flops, fewest,
        more=POOLED, gpu_shapes=POOLED_ON_GPU,
    ),
]  # fmt: skip

if __name__ == "__main__":
    main(BENCHES)
