"""Whole training steps as CUDA graphs, and several runs on one GPU."""
