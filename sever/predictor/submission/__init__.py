"""Submission files."""
