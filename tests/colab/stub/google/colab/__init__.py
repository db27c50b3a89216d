"""Stands for Colab's own package: a first cell asks whether it has been imported, and nothing else."""
