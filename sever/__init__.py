"""sever: from steel images and a YAML file to the best possible submission."""

__version__ = "0.1.0"
