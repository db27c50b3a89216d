"""What each mistake does to a training run, in one sentence: what a learner would see on the curves."""

EFFECTS: dict[str, dict[str, str]] = {}
