"""Environments: spaces and Atari."""
