"""Measurements of speed: on processors, on a GPU, and beside plain loops."""
