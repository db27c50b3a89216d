"""Samples, token by token: the reward as background, the KL as the line below."""

from html import escape
from pathlib import Path

from minirl.files import read_json
from minirl.report.curves import short
from minirl.report.page import note
from minirl.report.reading import making_sense_of


def reads_tokens(path: Path) -> bool:
    """Whether the score is a sum over tokens, as a reward model's is."""
    with making_sense_of(path):
        return path.is_file() and any(r["reward"] for question in read_json(path, list) for r in question["responses"])


def samples(path: Path, scored_by: str) -> str:
    if not path.is_file():
        return ""
    with making_sense_of(path):
        return answers_to(read_json(path, list), scored_by)


def answers_to(questions: list[dict], scored_by: str) -> str:
    responses = [response for question in questions for response in question["responses"]]
    most_reward = scale([x for response in responses for x in response["reward"] or []])
    most_kl = scale([x for response in responses for x in response["kl"] or []])
    has_gold = any(response["gold"] is not None for response in responses)
    parts = [legend(scored_by, most_reward, most_kl, has_gold)]
    for question in questions:
        answers = "".join(answer(response, most_reward, most_kl) for response in question["responses"])
        parts.append(f"<article><h3>{escape(question['prompt'])}</h3>\n{answers}</article>")
    return "\n".join(parts)


def scale(values: list[float]) -> float | None:
    """The size of number that gets the full colour: one token in 20 may exceed it. None where nothing is coloured."""
    if not values:
        return None
    sizes = sorted(map(abs, values))
    return sizes[int(0.95 * (len(sizes) - 1))] or 1.0


def legend(scored_by: str, most_reward: float | None, most_kl: float | None, has_gold: bool) -> str:
    lines = [f"The same prompts and the same noise for every model. The score is that of {scored_by}"]
    lines[0] += ", the sum of its tokens' rewards." if most_reward else "."
    if has_gold:
        lines.append("gold is the hidden true reward.")
    ramps = []
    if most_reward:
        end = short(most_reward)
        ramps.append(f'reward of a token: -{end}<span class="ramp reward"></span>+{end}')
    if most_kl:
        ramps.append(f'KL to the first model at a token: 0<span class="ramp moved"></span>{short(most_kl)} nats')
    if not ramps:
        return note(" ".join(lines))
    swatches = "".join(f"<span>{ramp}</span>" for ramp in ramps)
    return note(" ".join([*lines, "Point at a token for its numbers."])) + f'<p class="note legend">{swatches}</p>'


def answer(response: dict, most_reward: float | None, most_kl: float | None) -> str:
    numbers = [f"score {response['score']:.2f}"]
    if response["gold"] is not None:
        numbers.append(f"gold {response['gold']:.2f}")
    if response["kl"] is not None:
        numbers.append(f"KL {sum(response['kl']):.2f} nats")
    count = len(response["tokens"])
    rewards, kl = response["reward"] or [None] * count, response["kl"] or [None] * count
    spans = [
        token_span(*token, most_reward, most_kl, last=index == count - 1)
        for index, token in enumerate(zip(response["tokens"], rewards, kl, strict=True))
    ]
    return (
        f'<div class="response"><p class="note"><b>{escape(response["model"])}</b> · {" · ".join(numbers)}</p>'
        f'<p class="text">{"".join(spans)}</p></div>\n'
    )


def token_span(
    text: str, reward: float | None, kl: float | None, most_reward: float | None, most_kl: float | None, *, last: bool
) -> str:
    """One token: its reward as background, blue above 0 and orange below, its KL as the line under it."""
    classes, style, said = ["token"], [], []
    if reward is not None and most_reward:
        classes.append("plus" if reward >= 0 else "minus")
        style.append(f"--reward:{0.6 * min(abs(reward) / most_reward, 1):.2f}")
        said.append(f"reward {reward:+.3f}")
    if kl is not None and most_kl:
        style.append(f"--moved:{min(abs(kl) / most_kl, 1):.2f}")
        said.append(f"KL {kl:.3f} nats")
    if last and text.startswith("<"):
        classes.append("end")
    attributes = f' style="{";".join(style)}" title="{escape(", ".join(said))}"' if said else ""
    return f'<span class="{" ".join(classes)}"{attributes}>{escape(text) or "·"}</span>'
