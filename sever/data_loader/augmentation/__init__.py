"""Crops, transforms and pipelines of them."""
