"""Writes the sample files of this folder. The same bytes come out on every machine:

python data/make_data.py            into this folder
python data/make_data.py FOLDER     somewhere else, to compare
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # so that it runs from a checkout that is not installed

from minirl.tasks import digit_sum, stories  # noqa: E402


def story_rows(n: int) -> list[dict]:
    prompts, responses = stories.stories(n, torch.Generator().manual_seed(0))
    gold = stories.gold(prompts, responses).tolist()
    return [
        {"prompt": prompt, "response": response, "gold": round(g, 1)}
        for prompt, response, g in zip(prompts, responses, gold, strict=True)
    ]


def preference_rows(n: int) -> list[dict]:
    """Two of the author's stories to each prompt. `gold_*` is what the labeller felt; a reward model never sees it."""
    generator = torch.Generator().manual_seed(1)
    prompts = stories.prompts(n, generator)
    a, b = stories.tell(prompts, generator), stories.tell(prompts, generator)
    gold_a, gold_b = stories.gold(prompts, a), stories.gold(prompts, b)
    prefers_a = stories.label(gold_a, gold_b, generator).tolist()
    rows = []
    for i, prompt in enumerate(prompts):
        first, second = (a[i], gold_a[i].item()), (b[i], gold_b[i].item())
        (chosen, gold_chosen), (rejected, gold_rejected) = (first, second) if prefers_a[i] else (second, first)
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        rows.append(row | {"gold_chosen": round(gold_chosen, 1), "gold_rejected": round(gold_rejected, 1)})
    return rows


def digit_sum_rows(n: int) -> list[dict]:
    prompts = digit_sum.prompts(n, torch.Generator().manual_seed(2))
    return [{"prompt": p, "direct": digit_sum.direct_answer(p), "worked": digit_sum.worked_answer(p)} for p in prompts]


def make(folder: Path) -> dict[str, str]:
    """Writes the files and returns the SHA-256 of each by its path in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "stories.jsonl": story_rows(400),
        "stories_preferences.jsonl": preference_rows(400),
        "digit_sum.jsonl": digit_sum_rows(200),
    }
    for name, rows in tables.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
    names = list(tables)
    for task in (digit_sum, stories):
        name = "tokenizers/" + task.__name__.rpartition(".")[2]
        task.tokenizer().save(folder / name)
        names += [f"{name}/tokenizer.json", f"{name}/tokenizer_config.json"]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def record(folder: Path, hashes: dict[str, str]) -> None:
    """Enters the hashes into hashes.json and keeps what other scripts have entered there."""
    path = folder / "hashes.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    text = json.dumps(dict(sorted((known | hashes).items())), indent=2) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    hashes = make(target)
    record(target, hashes)
    print(f"{len(hashes)} files in {target}")
