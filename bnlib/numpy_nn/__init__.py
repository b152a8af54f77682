"""Networks in NumPy alone, forward and backward: the independent check of what torch does.

    from bnlib.numpy_nn import ResNet, SGD, freeze, loss_and_gradients
    network = ResNet("resnet14", classes=10).load_state_dict(bnlib.models.build("resnet14", 10).state_dict())
    optimizer = SGD(freeze(network, "bn"), lr=0.1, momentum=0.9)
    loss, logits = loss_and_gradients(network, images, labels)          # (N, 3, H, W), (N,)
    optimizer.step()
    safetensors.numpy.save_file(network.state_dict(), "resnet14.safetensors")     # which torch can load

`layers` and `convolution` are the layers, `networks` the CIFAR ResNets and ResNet-101, `optim` the optimizers,
`training` the notebook's loop, on the report's datasets; `check` compares all of it with torch, which no other file
here computes with.
"""

from bnlib.numpy_nn.convolution import Conv2d, LoopConv2d
from bnlib.numpy_nn.layers import (
    BatchNorm2d,
    CrossEntropy,
    Flatten,
    GlobalAvgPool2d,
    Identity,
    Layer,
    Linear,
    MaxPool2d,
    Parameter,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
)
from bnlib.numpy_nn.networks import OneConvolution, ResNet, ResNet101, draw, freeze, loss_and_gradients
from bnlib.numpy_nn.optim import SGD, Adam

__all__ = ["SGD", "Adam", "BatchNorm2d", "Conv2d", "CrossEntropy", "Flatten", "GlobalAvgPool2d", "Identity", "Layer",
           "Linear", "LoopConv2d", "MaxPool2d", "OneConvolution", "Parameter", "ReLU", "ResNet", "ResNet101",
           "Residual", "Sequential", "Sigmoid", "draw", "freeze", "loss_and_gradients"]
