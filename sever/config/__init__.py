"""YAML files and what may stand in them."""
