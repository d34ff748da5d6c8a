"""List the shapes of all parameters of three networks."""

Shape = tuple[int, ...]


def small_cnn() -> list[Shape]:
    """Return the shapes of a small network for images: 80 arrays, 274,570 parameters.

    It has 19 convolutions of 3 × 3, each with a bias and with batch normalisation, and two linear layers. Its widths
    are those of the networks for CIFAR-10 in He et al. (2016).
    """
    shapes: list[Shape] = []
    inputs = 3
    for layers, outputs in ((7, 16), (6, 32), (6, 64)):
        for _ in range(layers):
            shapes += [(outputs, inputs, 3, 3), (outputs,), (outputs,), (outputs,)]
            inputs = outputs
    return [*shapes, (64, 64), (64,), (10, 64), (10,)]


def resnet50() -> list[Shape]:
    """Return the shapes of ResNet-50: 161 arrays, 25.6 million parameters.

    The network is that of He et al. (2016), "Deep Residual Learning for Image Recognition", as torchvision has it.
    """
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for blocks, inner in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for outputs, inputs, side in ((inner, channels, 1), (inner, inner, 3), (4 * inner, inner, 1)):
                shapes += [(outputs, inputs, side, side), (outputs,), (outputs,)]
            if block == 0:
                shapes += [(4 * inner, channels, 1, 1), (4 * inner,), (4 * inner,)]
            channels = 4 * inner
    return [*shapes, (1000, 2048), (1000,)]


def gpt2_small() -> list[Shape]:
    """Return the shapes of GPT-2 small: 148 arrays, 124 million parameters.

    The network is that of Radford et al. (2019), "Language Models are Unsupervised Multitask Learners".
    """
    d = 768
    layer: list[Shape] = [
        (d,),
        (d,),
        (d, 3 * d),
        (3 * d,),
        (d, d),
        (d,),
        (d,),
        (d,),
        (d, 4 * d),
        (4 * d,),
        (4 * d, d),
        (d,),
    ]
    return [(50257, d), (1024, d), *(12 * layer), (d,), (d,)]
