"""One flat loop a file. Each reads from top to bottom: roll out, score, advantages, update.

A loop takes models that live on some device already, functions for its data and its scores, a frozen config of numbers, and
a Run that keeps the records. It trains in place.
"""
