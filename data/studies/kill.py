"""Runs killed with kill -9 at 40 instants, in five loops, then resumed and compared with a run that was left alone.

A row is a kill: `wanted` is where it was aimed (anywhere, inside the save of a checkpoint, while the trained model is
written), `hit` what lay there afterwards, `steps` how many had been recorded, `result` whether metrics, samples and every
file of the model have the same bytes in the end. Each loop runs six times, and two
of these are killed twice.
"""

import random
import sys
import tempfile
from pathlib import Path

from store import write

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from faults.harness import SMALL, STEPS, Forge, arguments, differences

SETTINGS = {"kills": 40, "steps": STEPS, "loops": SMALL, "aimed": ["anywhere", "a save", "anywhere", "final"]}


def study(folder: Path) -> list[dict]:
    rows = []
    with Forge() as forge:
        for loop in SMALL:
            whole = folder / f"{loop}_whole"
            if forge.run(arguments(loop, whole)) != 0:
                raise RuntimeError(f"{loop}: the run that nobody kills does not end well")
            seed = 0
            while sum(row["loop"] == loop for row in rows) < SETTINGS["kills"] // len(SMALL):
                rows += killed(forge, loop, seed, folder, whole)
                seed += 1
    return rows


def killed(forge: Forge, loop: str, seed: int, folder: Path, whole: Path) -> list[dict]:
    """One run, killed once, or twice where the first kill came early enough, and resumed."""
    chance, out, rows = random.Random(f"{loop} {seed}"), folder / f"{loop}_{seed}", []
    aimed = SETTINGS["aimed"]
    for again in range(1 + (seed % 4 == 0)):
        wanted = aimed[(seed + again) % len(aimed)]
        hit, steps = forge.kill(arguments(loop, out), wanted, chance, out)
        rows.append({"loop": loop, "seed": seed, "wanted": wanted, "hit": hit, "steps": steps})
    ended = forge.run(arguments(loop, out))
    wrong = differences(out, whole) if ended == 0 else [f"exit status {ended}"]
    return [row | {"result": "the same bytes" if not wrong else "differs: " + " ".join(wrong)} for row in rows]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = study(Path(folder))
    write("kill", found, SETTINGS)
    for row in found:
        print(row)
