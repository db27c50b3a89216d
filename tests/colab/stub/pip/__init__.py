"""Stands for pip on the simulated Colab. See __main__.py."""
