"""Masks that other programs made."""
