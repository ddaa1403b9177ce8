"""Inputs and configurations for trainings of a second."""

import torch

from cifarlib import checking
from cifarlib.config import RunConfig
from cifarlib.study import expand, load_scale, load_study
from cifarlib.training import ImageSet, Inputs

SGD = {"name": "sgd", "momentum": 0.9}
DAA2 = {
    "rotation_degrees": 15.0,
    "rotation_probability": 0.5,
    "padding": 4,
    "flip_probability": 0.5,
}
MUON = {
    "name": "muon",
    "momentum": 0.6,
    "nesterov": True,
    "steps": 3,
    "normalized": True,
    "rest": {**SGD, "nesterov": True},
    "rest_factor": 0.5,
}


def make_inputs(train=96, validation=40, test=50):
    """Coloured noise whose mean colour tells the class: learnt in a few steps."""
    generator = torch.Generator().manual_seed(0)

    def images(count):
        labels = torch.arange(count) % 10
        base = torch.randint(0, 128, (10, 3), generator=torch.Generator().manual_seed(1))
        noise = torch.randint(0, 128, (count, 3, 32, 32), generator=generator)
        return ImageSet((base[labels][:, :, None, None] + noise).to(torch.uint8), labels)

    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return Inputs(images(train), images(validation), images(test), mean, std)


def on_cuda(inputs: Inputs) -> Inputs:
    """The same inputs on the GPU."""
    sets = (inputs.train, inputs.validation, inputs.test)
    moved = (ImageSet(images.images.cuda(), images.labels.cuda()) for images in sets)
    return Inputs(*moved, inputs.mean, inputs.std)


def short_run() -> RunConfig:
    """Run 30 of the base search (AdamW, 0.001, 0.0001), shortened, in fp32."""
    scale = load_scale("smoke", ["precision=fp32", "epochs.30=3", "seeds=[1]"])
    condition = expand(load_study(), scale, "stage1-base")[29]
    return condition.config.model_copy(update={"batch_size": 32})


def change(run: RunConfig, **changes) -> RunConfig:
    """A configuration with some fields changed, checked again; dotted keys as a__b."""
    content = run.model_dump(mode="json")
    for key, value in changes.items():
        outer, _, inner = key.partition("__")
        if inner:
            content[outer][inner] = value
        else:
            content[outer] = value
    return checking.validate(RunConfig, content, "test")
