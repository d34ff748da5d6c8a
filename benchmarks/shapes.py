"""List the shapes of all parameters of two networks."""

Shape = tuple[int, ...]


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
