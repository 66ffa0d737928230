"""Sheets that tests augment, and pipelines written in YAML."""

import numpy as np

from sever.config.build import build
from sever.config.load import Section
from sever.config.registry import AUGMENTATIONS
from sever.utils.rle import encode, parse
from sever.utils.seed import SampleRandom
from sever.utils.yaml_parser import parse_yaml


def differ(sample, other):
    return (sample[0] != other[0]).any()


def numbered_sheet(height, width):
    """A sheet of at most 256 pixels, each of another grey level: its row-major number."""
    return np.arange(height * width, dtype=np.uint8).reshape(height, width)


def one_pixel(shape, at):
    mask = np.zeros(shape, dtype=np.uint8)
    mask[at] = 1
    return mask


def sample(index, seed=0):
    return SampleRandom.of(seed, 0, index)


def spans_of(*masks):
    return [parse(encode(mask), mask.shape) for mask in masks]


def pipeline(args, name="Pipeline"):
    """The augmentation of a config's section, its `args` written in YAML."""
    return build(AUGMENTATIONS, Section(type=name, args=parse_yaml(args, "test")), "f.yml: augmentation")
