"""Losses are pure functions from tensors to (scalar, stats). They never see a model, a config or an optimiser."""
