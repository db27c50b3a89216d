"""Pretraining and SFT on the stories, seeds 20, 21, 22, others than those on which the settings were chosen: losses
against the known entropy, labels over prompt and padding, the lost end token, a chat template, epochs, two moods. About
four minutes on one CPU core.

python data/studies/sft.py
"""

import copy
import math
import re
from dataclasses import replace

import tokenizers
import torch
import torch.nn.functional as F
from store import write

from minirl.logprobs import token_logprobs
from minirl.losses.policy import weighted_logprob_loss
from minirl.masking import masked_mean
from minirl.model import Transformer
from minirl.rollout import encode_examples, response_logits, responses_text, roll_out
from minirl.run import Run
from minirl.tasks import stories
from minirl.tokenizer import Tokenizer
from minirl.train import pretrain
from minirl.train.optimizer import adamw, update, warmed_up_then_cosine
from minirl.train.settings import STORIES, tiny_transformer

SEEDS = (20, 21, 22)
HELD_OUT = 1500
BATCH = 64
SFT_LR = 2e-3
SFT_STEPS = (10, 20, 30, 60)
END_STEPS = 20
EPOCHS = {"stories": 64, "steps": 80, "every": 8, "held_out": 500}
CHAT = {"template": "<user> {} <assistant>", "steps": 50}
MOODS = {"lr": 4e-3, "steps": (30, 150)}
SETTINGS = (STORIES["pretrain"], SEEDS, HELD_OUT, BATCH, SFT_LR, SFT_STEPS, END_STEPS, EPOCHS, CHAT, MOODS)

TOKENIZER = stories.tokenizer()
HE, SHE = {"He", "he", "him"}, {"She", "she", "her"}
SLOT = {word: slot for slot, kinds in stories.TELLING.items() for kind in kinds for word in kind.split()}


def right_label(model, prompts, responses, words=TOKENIZER):
    """The loss on the response and its end token."""
    tokens, mask, starts = encode_examples(words, prompts, responses)
    length = mask.shape[1]
    logprobs = token_logprobs(response_logits(model, tokens, starts, length), tokens[:, -length:])
    return weighted_logprob_loss(logprobs, torch.ones(len(mask)), mask)[0]


def every_label(model, prompts, responses):
    """The mistake: prompt and padding are labels too."""
    tokens, _, _ = encode_examples(TOKENIZER, prompts, responses)
    return -token_logprobs(model(tokens[:, :-1]), tokens[:, 1:]).mean()


def no_end(model, prompts, responses):
    """The other mistake: padding is the end token, and every end token is taken for padding."""
    tokens, mask, starts = encode_examples(TOKENIZER, prompts, responses)
    length = mask.shape[1]
    logprobs = token_logprobs(response_logits(model, tokens, starts, length), tokens[:, -length:])
    return -masked_mean(logprobs, tokens[:, -length:] != TOKENIZER.pad_id)


def finetune(model, examples, loss_of, *, steps, seed, lr=SFT_LR, watch=None):
    """The loop of minirl.train.sft with another loss. Returns the losses."""
    model, losses = copy.deepcopy(model), []
    optimizer, generator = adamw(model), torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        loss = loss_of(model, *examples(BATCH, generator))
        lr_now = warmed_up_then_cosine(step, lr, 10, steps)
        update(optimizer, loss, step=step, lr=lr_now, max_grad_norm=1.0)
        losses.append(float(loss.detach()))
        if watch:
            watch(step, model, losses[-1])
    return model, losses


@torch.no_grad()
def measured(model, seed: int, *, frame: str = "{}", words=TOKENIZER) -> dict:
    """What 256 sampled stories are like, asked for in this frame."""
    generator = torch.Generator().manual_seed(1000 + seed)
    prompts = stories.prompts(256, generator)
    framed = [frame.format(prompt) for prompt in prompts]
    _, told = roll_out(model, words, framed, max_new_tokens=stories.MAX_NEW_TOKENS, generator=generator)
    texts = responses_text(told, words)
    used = [set(re.findall(r"\w+", text)) for text in texts]
    wrong = [SHE if stories.PRONOUNS[prompt.split()[2]][0] == "He" else HE for prompt in prompts]
    return {
        "pronoun": sum(not (w & bad) for w, bad in zip(used, wrong, strict=True)) / 256,
        "sound": sum(stories.parses(f"{x} {y}") for x, y in zip(prompts, texts, strict=True)) / 256,
        "finished": float(told.finished.float().mean()),
        "length": float(told.mask.sum(1).float().mean()),
        "gold": float(stories.gold(prompts, texts).mean()),
        "blended": sum(bool(w & stories.POSITIVE and w & stories.NEGATIVE) for w in used) / 256,
    }


@torch.no_grad()
def excess(model, seed: int, *, pretraining: bool, n: int = HELD_OUT) -> dict:
    """log p(author) - log p(model) on fresh texts, in nats a token: an unbiased estimate of a KL, and its standard error.

    Texts of the pretraining corpus count with their opening, stories of the author given theirs.
    """
    generator = torch.Generator().manual_seed(2000 + seed)
    prompts, responses = (stories.pretraining_examples if pretraining else stories.stories)(n, generator)
    tokens, mask, starts = encode_examples(TOKENIZER, prompts, responses)
    length = mask.shape[1]
    if pretraining:
        mask, length = F.pad(mask, (tokens.shape[1] - 1 - length, 0), value=True), tokens.shape[1] - 1
    logprobs = token_logprobs(response_logits(model, tokens, starts, length), tokens[:, -length:])
    of_model = (logprobs * mask).sum(1).double()
    author = corpus_logprob if pretraining else stories.author_logprob
    of_author = torch.tensor([author(x, y) for x, y in zip(prompts, responses, strict=True)], dtype=torch.float64)
    gap, tokens_each = of_author - of_model, float(mask.sum() / n)
    return {
        "excess": float(gap.mean()) / tokens_each,
        "excess_se": float(gap.std()) / math.sqrt(n) / tokens_each,
        "held_out": float(-of_model.mean()) / tokens_each,
    }


def corpus_logprob(prompt: str, response: str) -> float:
    """Of one text of the pretraining corpus, opening included: 324 openings, and a he or a she at even odds."""
    heroes = ("One day Tom went to the park.", "One day Mia went to the park.")
    return max(stories.author_logprob(hero, response) for hero in heroes) - math.log(2 * 324)


def with_roles(base, seed: int):
    """The model with two more tokens, <user> and <assistant>, whose rows begin near the mean of the others."""
    backend = tokenizers.Tokenizer.from_str(TOKENIZER.backend.to_str())
    backend.add_special_tokens([tokenizers.AddedToken(role, normalized=False) for role in ("<user>", "<assistant>")])
    chat = Tokenizer(backend, eos=TOKENIZER.eos)
    wide, old = Transformer(replace(base.config, vocab_size=chat.vocab_size)), base.state_dict()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in wide.state_dict().items():
            weight[: len(old[name])] = old[name]
            new = weight[len(old[name]) :]
            new.copy_(old[name].mean(0) + 0.1 * old[name].std() * torch.randn_like(new))
    return wide, chat


def in_a_mood(response: str, kind: int, generator) -> str:
    """The story with every telling word made pleasant (kind 0) or nasty (kind 1)."""
    words = re.findall(r"\w+|\.", response)
    for i, word in enumerate(words):
        if word in SLOT:
            pair = stories.TELLING[SLOT[word]][kind].split()
            new = pair[int(torch.rand((), generator=generator) < 0.5)]
            words[i] = pair[1 - pair.index(new)] if new == words[i - 2] else new
    return " ".join(words).replace(" .", ".")


def two_moods(share: float):
    def examples(n, generator):
        prompts, responses = stories.stories(n, generator)
        kinds = (torch.rand(n, generator=generator) >= share).int().tolist()
        return prompts, [in_a_mood(y, kind, generator) for y, kind in zip(responses, kinds, strict=True)]

    return examples


def teacher(kind: int, seed: int) -> dict:
    prompts, responses = two_moods(1.0 - kind)(1000, torch.Generator().manual_seed(seed))
    return {"gold": float(stories.gold(prompts, responses).mean())}


def seed_rows(seed: int) -> list[dict]:
    torch.manual_seed(seed)
    base = Transformer(tiny_transformer(TOKENIZER.vocab_size))
    settings = type(STORIES["pretrain"])(**(vars(STORIES["pretrain"]) | {"seed": seed}))
    pretrain.train(base, TOKENIZER, stories.pretraining_examples, settings, Run(progress=False))
    rows = []

    def add(run, steps, **columns):
        rows.append({"seed": seed, "run": run, "steps": steps} | columns)

    add("pretrained", settings.steps, **excess(base, seed, pretraining=True), **measured(base, seed))
    for name, loss_of, counts in (
        ("answer", right_label, SFT_STEPS),
        ("everything", every_label, SFT_STEPS),
        ("no end", no_end, (END_STEPS,)),
    ):
        for steps in counts:
            model, losses = finetune(base, stories.stories, loss_of, steps=steps, seed=seed)
            last = {"loss": sum(losses[-5:]) / 5}
            add(name, steps, **last, **excess(model, seed, pretraining=False), **measured(model, seed))
            if (name, steps) == ("answer", SFT_STEPS[-1]):
                student = model

    wide, chat = with_roles(base, seed)

    def turns(n, generator):
        prompts, responses = stories.stories(n, generator)
        return [CHAT["template"].format(prompt) for prompt in prompts], responses

    def chat_label(model, prompts, responses):
        return right_label(model, prompts, responses, chat)

    model, _ = finetune(wide, turns, chat_label, steps=CHAT["steps"], seed=seed)
    for frame in (CHAT["template"], "{}"):
        add(f"chat, asked as {frame}", CHAT["steps"], **measured(model, seed, frame=frame, words=chat))

    few = stories.stories(EPOCHS["stories"], torch.Generator().manual_seed(3000 + seed))

    def memorising(step, model, loss):
        if step == 1 or step % EPOCHS["every"] == 0:
            held_out = excess(model, seed, pretraining=False, n=EPOCHS["held_out"])["held_out"]
            add("epochs", step, loss=loss, held_out=held_out)

    finetune(base, lambda n, g: few, right_label, steps=EPOCHS["steps"], seed=seed, watch=memorising)

    for kind, name in enumerate(("pleasant teacher", "nasty teacher")):
        add(name, 0, **teacher(kind, seed))
    for steps in MOODS["steps"]:
        model, _ = finetune(student, two_moods(0.5), right_label, steps=steps, seed=seed, lr=MOODS["lr"])
        add("both moods", steps, **measured(model, seed))
    model, _ = finetune(student, two_moods(1.0), right_label, steps=MOODS["steps"][0], seed=seed, lr=MOODS["lr"])
    add("pleasant only", MOODS["steps"][0], **measured(model, seed))
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    write("sft", [row for seed in SEEDS for row in seed_rows(seed)], SETTINGS)
