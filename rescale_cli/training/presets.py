"""Presets: the paper's recipes, and that of the bundled example.

Where the paper leaves a value out, the comment beside it says whose it is. The loss is plain
cross-entropy and training is WVN with RS at the end, as in the last row of the tables; `--no-wvn`
and `--loss` give the other rows. The gammas are the paper's, which chose them on the test set:
choose your own with `sweep-gamma`.
"""

from __future__ import annotations

from dataclasses import replace

from rescale_cli.registry import Registry
from rescale_cli.training.recipe import Recipe

#: Facts of each: `reference`, the section and table.
presets: Registry[Recipe] = Registry("preset")

_CIFAR = Recipe(
    imbalance="exp:100",  # Table 1: 200, 100, 50, 20, 10, 1; Fig. 8 and 9 show 100
    arch="rescale:resnet32",  # Section IV-A
    wvn=True,  # Algorithm 1
    epochs=180,  # Section IV-A
    lr=0.1,  # Section IV-A
    milestones=(80, 150),  # Section IV-A
    lr_decay=0.1,  # Section IV-A
    head_bias=False,  # Section III-A
    loss="ce",  # Eq. 2
    # The rest is in the published code (cifar.py), the same constants for CIFAR-10 and -100.
    batch_size=128,
    momentum=0.9,
    weight_decay=5e-4,
    augment="crop-flip",
    val_split=0.0,  # Table 1 counts every training image: 5000 of the largest class
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
)

#: The usual constants of ImageNet; in the published code, too (imagenet.py of its first version).
_LARGE = replace(
    _CIFAR,
    imbalance="none",  # Section IV-D: these sets are long-tailed as they are
    size=224,
    augment="resized-crop",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)

_ALL = {
    "cifar10-lt": ("Section IV-A, Table 1", replace(_CIFAR, gamma=0.3)),  # gamma: Section IV-A
    "cifar100-lt": ("Section IV-A, Table 1", replace(_CIFAR, gamma=0.4)),  # gamma: Section IV-A
    "cifar10-step-vgg16": (
        "Section IV-B, Table 2",
        # Epochs and rates are not stated for this table: Section IV-A's. No gamma is given.
        replace(_CIFAR, imbalance="step:10", arch="rescale:vgg16"),
    ),
    "tiny-imagenet-lt": (
        "Section IV-C, Table 3",
        # "The same protocol used for CIFAR"; epochs and rates are not stated: Section IV-A's.
        replace(
            _CIFAR,
            arch="torchvision:resnet18",
            gamma=0.1,
            size=64,
            mean=_LARGE.mean,
            std=_LARGE.std,
        ),
    ),
    "inaturalist2018": (
        "Section IV-D, Table 4",
        replace(
            _LARGE,
            arch="torchvision:resnet50",  # Section IV-D
            # Not in the paper: defaults of the published code's first version (imagenet.py) ...
            epochs=90,
            batch_size=256,
            weight_decay=1e-4,
            # ... which leaves the milestones open: the usual thirds of 90 epochs.
            milestones=(30, 60),
        ),
    ),
    "imagenet-lt": (
        "Section IV-D, Table 5",
        replace(
            _LARGE,
            arch="rescale:resnet10",  # Section IV-D, "following [31]"
            # Not in the paper: stage 1 of the published configuration of [31], Liu et al. 2019.
            epochs=30,
            batch_size=256,
            milestones=(10, 20),
        ),
    ),
    "places-lt": (
        "Section IV-D, Table 5",
        replace(
            _LARGE,
            arch="torchvision:resnet152",  # Section IV-D, "following [31]"
            # Not in the paper: stage 1 of the published configuration of [31], Liu et al. 2019,
            # which begins from weights trained on ImageNet (--weights) and hardly moves them.
            epochs=30,
            batch_size=128,
            milestones=(10, 20),
            lr=0.001,
            head_lr_factor=100.0,
        ),
    ),
    "fashion-lt": (
        "the bundled example, not in the paper",
        replace(
            _CIFAR,
            arch="rescale:resnet8",
            wvn=False,
            head_bias=True,  # as most people's networks have
            epochs=30,
            milestones=(13, 25),  # the paper's 80 and 150 of 180
            mean=(0.2983,),
            std=(0.3551,),
        ),
    ),
}
for _name, (_reference, _recipe) in _ALL.items():
    presets.register(_name, reference=_reference)(_recipe)
