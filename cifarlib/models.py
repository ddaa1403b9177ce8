"""The networks: the paper's residual network, and torchvision's ResNet-18 and DenseNet-121.

The residual network (Listing 1, Figs. 3 and 4) on 3×32×32 images, 4,869,066 parameters:

| part     | layers                                               | output    | parameters |
|----------|------------------------------------------------------|-----------|-----------:|
| stem     | 3×3 conv 3→64, stride 2, padding 2; 3×3 conv 64→64   | 64×17×17  |     38,976 |
| stage 1  | 3×3 conv 64→128; 3×3 conv 128→128, stride 2          | 128×9×9   |    230,528 |
| stage 2  | 3×3 conv 128→256; 3×3 conv 256→256, stride 2         | 256×5×5   |    919,808 |
| stage 3  | 3×3 conv 256→512; 3×3 conv 512→512, stride 2         | 512×3×3   |  3,674,624 |
| head     | average pooling, dropout, linear 512→10              | 10        |      5,130 |

Every convolution has a bias and is followed by batch normalisation and ReLU. Each stage adds a
projection shortcut (1×1 convolution of stride 2 and batch normalisation; counted above) after
its second ReLU, and takes a ReLU of the sum.
"""

import copy
import io
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import DenseNet121_Weights, ResNet18_Weights, densenet121, resnet18
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import ResNet

from cifarlib.checking import named_folder, read_bytes
from cifarlib.config import ModelConfig
from cifarlib.errors import ConfigError, UnavailableError

CLASSES = 10


class ConvBlock(nn.Sequential):
    """3×3 convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, padding: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=padding)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()


class ResidualStage(nn.Module):
    """Two conv blocks that halve the image and double the channels, beside a projection."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.block1 = ConvBlock(inputs, outputs)
        self.block2 = ConvBlock(outputs, outputs, stride=2)
        self.shortcut = nn.Sequential()
        self.shortcut.conv = nn.Conv2d(inputs, outputs, kernel_size=1, stride=2)
        self.shortcut.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.block2(self.block1(x)) + self.shortcut(x))


class LogitLayer(nn.Linear):
    """The last linear layer, in fp32 whatever the precision of the rest.

    Logits rounded to bfloat16 tie for some images in a hundred; in fp32 they order the classes.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class ResidualNetwork(nn.Module):
    """The paper's network; (n, 3, 32, 32) normalised images → (n, 10) logits.

    Layers are made in the order of Listing 1, so that one seed gives the paper's first weights.
    """

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.stem1 = ConvBlock(3, 64, stride=2, padding=2)
        self.stem2 = ConvBlock(64, 64)
        self.stage1 = ResidualStage(64, 128)
        self.stage2 = ResidualStage(128, 256)
        self.stage3 = ResidualStage(256, 512)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = LogitLayer(512, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem2(self.stem1(x))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(self.dropout(self.pool(x).flatten(1)))


def initialize_kaiming(model: nn.Module) -> None:
    """He initialisation as the paper has it, in place (Section IV, Listing 1).

    Convolutions *and* linear layers: normal, fan-out, ReLU gain; biases 0; batch-norm 1 and 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def build_model(config: ModelConfig, dropout: float, seed: int) -> nn.Module:
    """A network with its first weights, on the CPU, in fp32.

    The global torch generator is seeded with ``seed`` itself, as Listing 2 does, and put back.
    Whitening is left to ``whiten_stem``, which needs images.
    Raises ``UnavailableError`` where ImageNet weights are asked for and not there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.name == "residual":
            model: nn.Module = ResidualNetwork(dropout)
        elif config.name == "resnet18":
            model = resnet18()
        elif config.name == "densenet121":
            model = densenet121()
        else:
            raise ValueError(f"no network is named {config.name!r}")
        if config.initialization == "imagenet":
            load_imagenet_weights(model, config.name)
        if isinstance(model, DenseNet):
            model.classifier = LogitLayer(model.classifier.in_features, CLASSES)
        elif isinstance(model, ResNet):
            model.fc = LogitLayer(model.fc.in_features, CLASSES)
        if config.initialization == "kaiming":
            initialize_kaiming(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = config.batch_norm_momentum
    if isinstance(model, ResidualNetwork):
        with torch.no_grad():
            model.fc.weight.mul_(config.last_layer_scale)
            stages = (model.stage1, model.stage2, model.stage3)
            for stage in stages:
                stage.block2.norm.weight.mul_(config.branch_scale)
            if config.partial_identity:
                blocks = [block for stage in stages for block in (stage.block1, stage.block2)]
                for block in (model.stem2, *blocks):
                    nn.init.dirac_(block.conv.weight[: block.conv.in_channels])
    return model


WHITENING_EPSILON = 5e-4  # added to the variances, so that noise is not blown up


@torch.no_grad()
def whiten_stem(model: ResidualNetwork, images: Tensor, *, frozen: bool) -> None:
    """Let the first filters whiten images' 3×3 patches, in place (Page; Jordan, 2024).

    ``images`` are normalised, float (n, 3, h, w). A filter is a principal direction of the
    patches, divided by the standard deviation along it. Each of the 27 comes twice, with both
    signs, since a ReLU follows; the last 10 of the 64 filters stay as they are.
    """
    weight = model.stem1.conv.weight
    size = weight.shape[-1]
    patches = nn.functional.unfold(images.double(), size, stride=size).transpose(1, 2)
    variances, directions = torch.linalg.eigh(torch.cov(patches.flatten(0, 1).T))
    filters = (directions / (variances + WHITENING_EPSILON).sqrt()).T.flip(0)  # largest first
    largest = filters.gather(1, filters.abs().argmax(1, keepdim=True))
    filters = filters * largest.sign()  # of two signs, eigh may give either
    both = torch.cat([filters, -filters]).view(-1, *weight.shape[1:])
    weight[: len(both)] = both.to(weight.dtype)
    weight.requires_grad_(not frozen)


def last_layer(model: nn.Module) -> nn.Linear:
    """The linear layer that gives the logits."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


# ---------------------------------------------------------------------------------------------
# ImageNet weights
# ---------------------------------------------------------------------------------------------

WEIGHTS = {
    "resnet18": ResNet18_Weights.IMAGENET1K_V1,
    "densenet121": DenseNet121_Weights.IMAGENET1K_V1,
}


def require_imagenet_weights(name: str) -> Path:
    """A network's weight file, in ``$CIFARLIB_WEIGHTS`` or torch's hub cache.

    Raises ``UnavailableError`` where there is none: nothing is downloaded here.
    """
    url = WEIGHTS[name].url
    folders = [Path(torch.hub.get_dir()) / "checkpoints"]
    try:
        if given := named_folder("CIFARLIB_WEIGHTS"):
            folders.insert(0, given)
    except ConfigError as error:
        raise UnavailableError(f"{name}: {error}") from error
    for folder in folders:
        if (path := folder / url.rpartition("/")[2]).is_file():
            return path
    raise UnavailableError(
        f"{name}: weights not available offline; download {url} into torch's hub cache or into the "
        "folder that CIFARLIB_WEIGHTS names"
    )


# DenseNet's file is older than torch 0.4 and says ``norm.1`` where ``norm1`` is meant.
OLD_NAME = re.compile(r"(denselayer.*)\.([12])(\.[^.]*)$")


def load_imagenet_weights(model: nn.Module, name: str) -> None:
    """Load torchvision's ImageNet weights (IMAGENET1K_V1) from a local file into a fresh model.

    Raises ``UnavailableError`` where the file is missing or is not what it should be.
    """
    path = require_imagenet_weights(name)
    try:
        state = torch.load(io.BytesIO(read_bytes(path)), map_location="cpu", weights_only=True)
        model.load_state_dict({OLD_NAME.sub(r"\1\2\3", key): value for key, value in state.items()})
    except MemoryError:
        raise
    except Exception as error:  # torch may raise anything, with advice that is not for our users
        reason = f"{error.strerror}" if isinstance(error, OSError) else "it is damaged or another"
        raise UnavailableError(
            f"{path} is no weight file of {name} ({reason}); delete it and download "
            f"{WEIGHTS[name].url} again"
        ) from error


def count_flops(model: nn.Module, image_size: int) -> int:
    """Floating-point operations of one image's forward pass (a multiply-add counts as two)."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).eval()(torch.zeros(1, 3, image_size, image_size))
    return counter.get_total_flops()
