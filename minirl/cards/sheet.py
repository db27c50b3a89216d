"""Two pages of A4 for the evening before: formulas with their signs, the traps, and how thirty answers begin.

The formulas are Python: a test runs each line and compares the result with the library's.
"""

import re
from html import escape

from minirl.cards.cards import Card
from minirl.cards.printed import document

# title: [(what, the formula, a remark)]. Names as in the library; min, max and clip go entry by entry, std is the unbiased one.
FORMULAS = {
    "Goal": [
        ("objective", "J = mean(r) - beta * KL", "KL(pi || pi_ref), over the policy's own samples. Minus."),
        ("optimum", "best = pi_ref * exp(r / beta) / Z", "value beta log Z; beta to 0: the best answer, however rare"),
        ("reward of a token", "r_t = -beta * (logp - ref)", "and the score on the last counted token"),
    ],
    "KL, samples from pi": [
        ("k1", "k1 = logp - ref", "unbiased, either sign; in the reward: exact. In the loss: no force at all"),
        ("k2", "k2 = (logp - ref) ** 2 / 2", "biased; for one token its gradient is that of KL(pi || pi_ref)"),
        ("k3", "k3 = exp(ref - logp) - 1 - (ref - logp)", "unbiased, never negative; its gradient: KL(pi_ref || pi)"),
        ("adaptive", "beta = beta * (1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon)", "kl: mean over n rows of sums"),
    ],
    "Policy gradient": [
        ("REINFORCE", "loss = -mean(total(A * logp))", "total over an answer's tokens; A is data, detached"),
        ("leave one out", "A = (r - mean(r)) * G / (G - 1)", "unbiased; a baseline must not see its own action"),
        ("TD error", "delta = r_t + gamma * V_next - V", "V after the end of a text is 0; gamma = 1"),
        ("GAE", "A = delta + gamma * lam * A_next", "backwards; lam 0 trusts the critic, lam 1 the rewards"),
        ("returns", "R = A + V", "the critic's targets, before any whitening"),
        ("whitening", "A = (A - mean(A)) / sqrt(mean((A - mean(A)) ** 2) + 1e-8)", "counted tokens of the whole batch"),
    ],
    "PPO": [
        ("ratio", "ratio = exp(logp - old)", "sampled token; same temperature; exactly 1 at first"),
        ("clip", "loss = -mean(min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A))", "the minimum for both signs of A"),
        ("value clip", "loss = mean(max((V - R) ** 2, (V_old + clip(V - V_old, -eps, eps) - R) ** 2)) / 2", "the maximum"),
    ],
    "Pairs": [
        ("Bradley-Terry", "loss = -mean(log(sigmoid(chosen - rejected)))", "log 2 at first; a constant per prompt is free"),
        ("log-ratio", "h = (chosen - ref_chosen) - (rejected - ref_rejected)", "SUMMED log-probabilities of answers"),
        ("DPO", "loss = -mean(log(sigmoid(beta * h)))", "larger beta: nearer to pi_ref; only the margin is trained"),
        ("IPO", "loss = mean((h - 1 / (2 * beta)) ** 2)", "a target, not a sigmoid; TRL averages over length"),
        ("SimPO", "loss = -mean(log(sigmoid(beta * (chosen - rejected) - gamma)))", "length-averaged, no reference"),
        (
            "robust DPO",
            "loss = mean(-(1 - e) * log(sigmoid(beta * h)) + e * log(sigmoid(-beta * h))) / (1 - 2 * e)",
            "cDPO: its + is a -, and there is no division",
        ),
    ],
    "Groups of G answers to a prompt": [
        ("GRPO", "A = (r - mean(r)) / (std(r) + 1e-4)", "one number for all tokens; equal rewards: 0"),
        (
            "GRPO loss",
            "loss = -mean(min(ratio * A, clip(ratio, 1 - eps, 1 + eps_high) * A) - beta * k3)",
            "paper: mean per answer, then over answers",
        ),
        ("GSPO", "ratio = exp(mean(logp - old))", "over an answer's tokens; eps about 3e-4"),
        ("CISPO", "loss = -mean(detach(min(ratio, 1 + eps_high)) * A * logp)", "clips the weight, not the gradient"),
        ("dead groups", "dead = p ** G + (1 - p) ** G", "p: chance of a right answer; DAPO draws new ones"),
        ("best of n", "most_kl = log(n) - (n - 1) / n", "an upper bound; no answer gets likelier than n times"),
    ],
}  # fmt: skip

NOTES = [
    ("Dr. GRPO", "no std; divide by a constant, not by |y|."),
    ("DAPO", "higher upper clip; resample dead groups; token mean; soft charge for overlong answers; no KL."),
    (
        "Who divides",
        "GRPO paper: per answer (short right and long wrong answers gain). DAPO: all tokens. Dr. GRPO: a constant.",
    ),
    ("LoRA", "y = W x + (alpha / r) B A x; B = 0 at first; the reference is the base, free."),
]

MEMORY = [  # bytes a weight, Adam, frozen copies in bf16; activations, logits and the KV cache come on top
    ("", "trained", "frozen", "bytes / weight"),
    ("SFT, reward model", "1", "", "16"),
    ("DPO", "1", "reference", "18 (16: stored logps)"),
    ("GRPO, RLOO", "1", "reference", "18 (16: no KL)"),
    ("PPO, value head", "1", "reference", "18"),
    ("PPO, own critic", "2", "reference", "34"),
    ("LoRA, bf16 base", "adapter", "base", "2 + 16 x trained share"),
]  # each reward model adds 2, in float32 4

TRAPS = [
    "E[r] minus beta KL. With a plus, distance is paid.",
    "KL(pi || ref), samples from pi. Swapped, k1 averages to -KL, k3 to chi2 - KL.",
    "An estimate of KL may be negative; the KL is not.",
    "Value is not gradient: k1 in the loss restrains nothing, k3 in the loss stops short.",
    "Logits at t predict token t + 1. Old and new can share the mistake and still give ratio 1.",
    "Ratio not 1 at the first minibatch: temperature, top-p, dropout, re-tokenised text, another engine.",
    "The score falls on the last counted token, by the mask, not by column -1.",
    "pad = eos and a mask tokens != pad: the end token leaves the loss, the model never stops.",
    "Padding averaged into means, whitening, KL. Test: delete it, fill it with NaN.",
    "gamma below 1 pays for ending early when scores are positive.",
    "Whitening one answer alone erases its score. Equal rewards whitened: noise at full size.",
    "The clip is no wall: it removes a gradient, and only on one side.",
    "Loss 0 at the first step (GRPO, whitened PPO) is no bug: its gradient is not 0.",
    "DPO averaged over length is another objective. The chosen log-probability usually falls too.",
    "Larger beta in DPO: nearer at the optimum; a few SGD steps move further.",
    "Scores of different prompts have no common zero.",
    "Accuracy of a reward model: compare with the ceiling of noisy labels, not with 100%.",
    "The proxy always rises. Watch KL, length, repetition; read samples; buy fresh labels.",
    "A mean of micro-batch means is not the mean: divide by the whole batch's tokens.",
    "Group of two, rewards 1 and 0: 0.707 (unbiased std) or 1 (population). Say which.",
    "The reward reads the prompt too: constant scores from step one.",
    "55 wins of 100 is a tie: the standard error is 5 points.",
]

STYLE = """
@page { size: A4; margin: 9mm 9mm; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 192mm; font: 8.1pt/1.27 system-ui, sans-serif; color: #1c2024; background: #ffffff; }
h1, h2.part { font-size: 11.5pt; margin: 1.5mm 0 1mm; } small { font-weight: 400; font-size: 8pt; color: #4d555c; }
h2 { font-size: 8.8pt; margin: 1.8mm 0 .7mm; border-bottom: .35mm solid #0072b2; break-after: avoid; } h2.part { border: 0; }
p, ol, ul { margin: 0; } ul { padding-left: 3.5mm; } ol { padding-left: 6mm; } li { break-inside: avoid; margin-bottom: .45mm; }
code { font: 7.6pt/1.25 ui-monospace, "DejaVu Sans Mono", monospace; display: block; white-space: pre-wrap; color: #0b3d66; }
.formula { break-inside: avoid; margin-bottom: .75mm; } .formula span { color: #4d555c; }
.columns { columns: 2; column-gap: 6mm; } .second { break-before: page; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25mm 1.5mm .25mm 0; border-bottom: .15mm solid #d9dde1; }
.lines { font-size: 7.5pt; line-height: 1.22; } .lines li { margin-bottom: .9mm; } .lines li b { display: block; }
@media screen { body { padding: 6mm 4mm; } .second { margin-top: 10mm; } }
@media screen and (max-width: 600px) { .columns { columns: 1; } }
"""


def sheet_page(evening: list[Card]) -> str:
    """The whole document. `evening`: whose answers' first lines stand on the second page."""
    parts = ["<h1>Formulas <small>log-probabilities unless said; A is data; sums over counted tokens</small></h1>"]
    parts.append('<div class="columns">')
    for title, formulas in FORMULAS.items():
        parts.append(f"<h2>{escape(title)}</h2>")
        for name, code, remark in formulas:
            parts.append(
                f'<div class="formula"><b>{escape(name)}</b> <span>{escape(remark)}</span><code>{escape(code)}</code></div>'
            )
    parts += [f'<div class="formula"><b>{escape(name)}</b> {escape(text)}</div>' for name, text in NOTES]
    parts += [
        "<h2>Memory, Adam; frozen copies in bf16</h2>",
        memory(),
        "<p>A reward model adds 2. Frozen in float32: 4. Logits: tokens x V x 4.</p>",
    ]
    parts += ["</div>", '<h2 class="part">Traps <small>say the right one before they ask</small></h2>']
    parts.append('<ul class="columns">' + "".join(f"<li>{escape(trap)}</li>" for trap in TRAPS) + "</ul>")
    parts.append(f'<h2 class="part second">How {len(evening)} answers begin <small>the most useful first</small></h2>')
    lines = (f"<li><b>{escape(card.question)}</b>{escape(first_line(card.short))}</li>" for card in evening)
    parts += ['<ol class="columns lines">' + "".join(lines) + "</ol>"]
    return document("minirl: the evening before", STYLE, "\n".join(parts))


def memory() -> str:
    head, *rows = MEMORY
    cells = "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"
    return (
        f"<table>{cells}"
        + "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
        + "</table>"
    )


def first_line(text: str) -> str:
    """The first sentences of an answer, until there are sixteen words."""
    sentences = re.split(r"(?<=[.?!])\s+(?=[A-Z])", text)
    ends = [i for i in range(1, len(sentences) + 1) if len(" ".join(sentences[:i]).split()) >= 16]
    return " ".join(sentences[: ends[0]]) if ends else text
