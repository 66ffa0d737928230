"""Drawn steel."""
