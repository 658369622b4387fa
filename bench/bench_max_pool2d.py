"""max_pool2d on the pooling layers of VGG-16, ResNet-50, AlexNet, U-Net and the 48x48 CNN."""

from pyops.cases import OPS

from .command import main
from .harness import Bench

LAYERS = {
    "cnn48.pool1": dict(n=64, c=64, hw=48, k=2),
    "cnn48.pool2": dict(n=64, c=128, hw=24, k=2),
    "resnet50.pool1": dict(n=8, c=64, hw=112, k=3, stride=2, padding=1),
    "vgg16.pool1": dict(n=2, c=64, hw=224, k=2),
    "vgg16.pool5": dict(n=8, c=512, hw=14, k=2),
}
MORE = {
    "vgg16.pool2": dict(n=2, c=128, hw=112, k=2),
    "vgg16.pool3": dict(n=2, c=256, hw=56, k=2),
    "vgg16.pool4": dict(n=2, c=512, hw=28, k=2),
    "alexnet.pool1": dict(n=8, c=64, hw=55, k=3, stride=2),
    "alexnet.pool5": dict(n=8, c=256, hw=13, k=3, stride=2),
    "unet.pool1": dict(n=1, c=64, hw=256, k=2),
    "diffusion.pool1": dict(n=32, c=16, hw=28, k=2),
    "cnn48.pool1.n1": dict(n=1, c=64, hw=48, k=2),
    "resnet50.pool1.n1": dict(n=1, c=64, hw=112, k=3, stride=2, padding=1),
    "resnet50.pool1.n64": dict(n=64, c=64, hw=112, k=3, stride=2, padding=1),
}
ON_GPU = {
    "resnet50.pool1": dict(n=128, c=64, hw=112, k=3, stride=2, padding=1),
    "vgg16.pool1": dict(n=32, c=64, hw=224, k=2),
    "vgg16.pool5": dict(n=128, c=512, hw=14, k=2),
    "dense512": dict(n=8, c=64, hw=512, k=4, stride=1, padding=1),
}

# Comparisons are not counted: moving the data is the work.
BENCHES = [
    Bench(OPS["max_pool2d"], LAYERS, flops=lambda s: 0.0, more=MORE, gpu_shapes=ON_GPU),
]

if __name__ == "__main__":
    main(BENCHES)
