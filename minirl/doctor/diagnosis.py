"""What a rule returns."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Diagnosis:
    name: str  # one word, the same for every log
    confidence: float  # in (0, 1]
    evidence: str  # the numbers that convinced, with their steps
    advice: str  # what to look at next, in order
