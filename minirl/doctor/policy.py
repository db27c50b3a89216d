"""Rules about the policy: its ratio to the one that sampled, the clip, KL to the reference, entropy, temperature."""

import statistics

from minirl.doctor.diagnosis import Diagnosis
from minirl.doctor.log import NOISE, Log, short

EXACT = 1e-5  # a ratio this near to 1 has not moved; logs are often rounded to five digits
ALIVE = 1e-11  # approx_kl of float32 rounding alone is some 1e-13, of one update at lr 1e-7 some 1e-10
MOVED = 1e-6  # and of an update that moves anything, above this
TO_JUDGE = 8  # records of a reward before it counts against a policy that it does not rise
STILL = 1e-4  # nats: a KL that never passes it has not moved
CLIPS = 0.002  # approx_kl: log-ratios then spread by .06, and some pass 1.2; healthy runs clip .5% and more there
CLIPPED = 0.2  # healthy medians end at .04, sick ones begin at .27: the clip is one-sided and holds half at most
NEGATIVE = -0.01  # nats: rounding and the noise of k1 at step 1 stay above
FAR, FAR_PER_TOKEN = 10.0, 0.1  # nats from the reference: healthy runs end below 6 and at .25 a token, and level off
AWAY_PER_TOKEN = 1.0  # no text is left there: the sick runs reach 2 to 7, healthy ones .3
DOUBLED, TREBLED = 1.6, 3.0  # the last fifth against the middle: steady growth doubles, growth without bound trebles
COLLAPSED, FROZEN = 0.1, 0.01  # share of the first entropy; nats. Solved digits end at .02 to .06
SETTLING = 0.7  # share of right answers from which a policy may well have made up its mind
MISMATCH = 0.1  # approx_kl of the first steps: healthy .06 at most, a sampler at 2 has .5; at 1.4, .05, its KL tells
OFF = 0.05  # of ratio_mean from 1 at the first step; healthy .02
SAMPLER_GAP = 0.1  # nats a token between sampler and trainer; engines that round differently show .01 to .06
EARLY_KL, EARLY_A_TOKEN = 0.25, 0.01  # nats at step 1, where health has 0: a sampler at 0.7 shows .3, and .014 a token
EARLY_APPROX, EARLY_CLIP = 0.005, 0.02  # and these beside: .007 and .03; a healthy first step has .001 and .01


def ratio_always_one(log: Log) -> Diagnosis | None:
    ratio, approx, kl = log["ratio_mean"], log["approx_kl"], log["kl"]
    if len(ratio) < 3 or any(abs(x - 1) > EXACT for x in ratio.values) or log.updates == 1:
        return None
    drift, least = approx.median if approx else 0.0, TO_JUDGE if log["reward_mean"] else 3
    contradicted = drift > MOVED or any(x > 0 for x in log["clip_fraction"].values)
    frozen = len(kl) > 2 and max(map(abs, kl.values)) < STILL and drift < ALIVE
    if (log.updates or 0) > 1 and drift < ALIVE:
        confidence, why = 0.95, f"although a batch is used for {log.updates:g} updates"
    elif contradicted:
        confidence, why = (
            0.9,
            f"although approx_kl has a median of {short(drift)}: one of the two is computed from other numbers",
        )
    elif frozen:
        confidence, why = 0.85, f"and KL never passes {STILL:g} nats: the policy does not move at all"
    elif log["reward_mean"].direction or log.solved or drift > ALIVE or len(ratio) < least:
        return None  # one update a batch, and it learns; or steps too small to see, for which there is another rule
    else:
        confidence, why = (0.6 if "value_loss" in log else 0.35), "and the reward does not move"
    return Diagnosis(
        "ratio_always_one",
        confidence,
        f"ratio_mean is 1 in all {len(ratio)} records, steps {ratio.steps[0]} to {ratio.steps[-1]}, {why}.",
        "With one update a batch this is right. With several, check that old_logprobs are computed once, before the first "
        "update, and kept; and that the optimiser holds the parameters that are trained (made before LoRA was added? the "
        "value head alone?). Notebooks 09 and 16.",
    )


def clip_fraction_zero(log: Log) -> Diagnosis | None:
    clip, approx, ratio = log["clip_fraction"], log["approx_kl"], log["ratio_mean"]
    if len(clip) < 3 or any(clip.values) or log.updates == 1:
        return None
    least = TO_JUDGE if log["reward_mean"] else 3
    drift, off = approx.median if approx else 0.0, max((abs(x - 1) for x in ratio.values), default=0.0)
    if drift > CLIPS:
        confidence, why = (0.93 if drift > 10 * CLIPS else 0.8), f"approx_kl has a median of {short(drift)}"
    elif off > OFF / 2:
        confidence, why = 0.6, f"ratio_mean is up to {short(off)} away from 1"
    elif log["reward_mean"].direction or log.solved or len(clip) < least or drift > ALIVE:
        return None  # one update a batch, or small ones: nothing to clip
    else:
        confidence, why = 0.3, "nothing in this log says that the policy moves within a batch"
    return Diagnosis(
        "clip_fraction_zero",
        confidence,
        f"clip_fraction is 0 in all {len(clip)} records, and {why}.",
        "With one update a batch there is nothing to clip, and this is right. Otherwise look at clip_eps, at whether the clipped "
        "term reaches the loss, and at old_logprobs. A policy that moves this far without a clip is held by nothing: watch "
        "the KL. Notebook 09.",
    )


def clip_fraction_high(log: Log) -> Diagnosis | None:
    clip = log["clip_fraction"]
    if len(clip) < 5 or (held := max(clip.median, clip.second_half.median)) < CLIPPED:
        return None
    return Diagnosis(
        "clip_fraction_high",
        0.9 if held >= 0.5 else 0.7,
        f"clip_fraction has a median of {short(held)}, largest {short(max(clip.values))}: the clip takes the gradient of every "
        f"{'second' if held >= 0.5 else 'third'} term or more.",
        "Compare clip_eps with what the loss clips: 0.2 is meant for token ratios, 3e-4 for GSPO's sequence ratios. Then fewer "
        "epochs or larger minibatches a batch, then a lower learning rate. For GSPO, and on the first step of a warm-up-free "
        "run, a high share is less alarming as long as the reward rises. Notebooks 09 and 12.",
    )


def negative_kl(log: Log) -> Diagnosis | None:
    kl = log["kl"]
    if len(kl) < 3:
        return None
    below = sum(x < 0 for x in kl.values) / len(kl)
    half = kl.second_half
    level = statistics.fmean(half.values)
    if below < 0.5 or level > NEGATIVE or level > -NOISE * kl.error:
        return None
    return Diagnosis(
        "negative_kl",
        0.97 if level < -1 else 0.8,
        f"kl is negative in {below:.0%} of the records; it {kl.said()} and its mean over the second half is {short(level)}. "
        "A KL divergence is never negative.",
        "First the order of the arguments: k1 is log pi - log pi_ref, on text sampled from pi. Then the sampler: top_k, top_p, a "
        "minimum length or another temperature draw from another distribution than the one that is scored. k3 cannot be "
        "negative; log it beside. A reversed sign in the reward pays for distance. Notebook 07.",
    )


def kl_growing(log: Log) -> Diagnosis | None:
    kl, length = log["kl"], log["length_mean"]
    if len(kl) < 6:
        return None
    third = len(kl) // 3
    middle = statistics.median(kl.values[third : len(kl) - third])
    grown = kl.late / max(middle, 1e-9)
    per_token = kl.late / max(length.late, 1.0) if length else None
    far = kl.late > FAR and (per_token is None or per_token > FAR_PER_TOKEN)
    away = far and per_token is not None and per_token > AWAY_PER_TOKEN and grown > 1.2
    steady = far and grown > DOUBLED and (per_token is None or per_token > 2 * FAR_PER_TOKEN)
    if not away and not steady and not (far and grown > TREBLED):
        return None
    a_token = "" if per_token is None else f", {short(per_token)} nats a token at the end"
    return Diagnosis(
        "kl_growing",
        0.9 if away or grown > TREBLED else 0.6,
        f"kl {kl.said('rose')}{a_token}; the last records have {short(grown)} times the median of the middle third.",
        "Look at samples first, then at a reward that training does not see. Raise kl_coef or give it a target (AdaptiveKL), "
        "stop at max_kl, lower the learning rate. If kl_coef is already high, check its sign and that the reference is a frozen "
        "copy. Notebooks 07 and 10.",
    )


def entropy_collapse(log: Log) -> Diagnosis | None:
    entropy = log["entropy"]
    if len(entropy) < 5 or min(entropy.first, entropy.early) <= 0 or "mean_token_accuracy" in log:
        return None
    left = entropy.late / entropy.early
    reward = log["reward_mean"]
    settling = log.a_share and reward.late > SETTLING and reward.direction == "rose" and entropy.late > FROZEN
    done = settling or (log.solved and reward.late > 0.95)
    if left > COLLAPSED or done:
        return None
    rising = reward.second_half.direction == "rose"
    beside = ", while the reward still rises" if rising else ", and the reward does not rise any more" if reward else ""
    return Diagnosis(
        "entropy_collapse",
        0.65 if rising else 0.85,
        f"entropy {entropy.said('fell')}: {left:.1%} of what it was{beside}.",
        "Print a few samples of one prompt: are they all the same? Look at dead_groups, which follows. Lower the rate, "
        "fewer epochs a batch, clip-higher (clip_eps_high .28), an entropy bonus of the right sign, temperature 1. "
        "A task that is solved may end with low entropy in health. Notebooks 09 and 12.",
    )


def temperature_mismatch(log: Log) -> Diagnosis | None:
    approx, ratio, kl, clip = log["approx_kl"], log["ratio_mean"], log["kl"], log["clip_fraction"]
    gap, length, start = log["sampling_gap"], log["length_mean"], log.first_step <= 1
    ratio_off = bool(start and ratio) and abs(ratio.first - 1) > OFF and abs(ratio.median - 1) > OFF / 2
    if gap and gap.median > SAMPLER_GAP:
        confidence, why = 0.8, f"sampler and trainer differ by {short(gap.median)} nats a token in the median"
    elif start and len(approx) > 2 and min(approx.values[:3]) > MISMATCH:
        # where the KL of step 1 is 0, sampler and reference agree, and it is the updates that go too far
        confidence = 0.5 if kl and abs(kl.first) < STILL and not ratio_off else 0.85
        why = f"approx_kl is {short(approx.first)} at step {approx.steps[0]} already"
    elif ratio_off:
        confidence, why = 0.75, f"ratio_mean is {short(ratio.first)} at step {ratio.steps[0]} already"
    elif len(ratio) > 2 and min(abs(x - 1) for x in ratio.values) > 2 * OFF:
        confidence, why = (
            0.5,
            f"ratio_mean is never nearer to 1 than {short(min(ratio.values, key=lambda x: abs(x - 1)))}",
        )
    elif (
        start
        and min(len(kl), len(approx), len(clip)) > 2
        and min(kl.values[:2]) > EARLY_KL
        and kl.first > EARLY_A_TOKEN * max(length.first if length else 0.0, 1.0)
        and min(approx.values[:2]) > EARLY_APPROX
        and statistics.fmean(clip.values[:2]) > EARLY_CLIP
    ):
        confidence, why = (
            0.65,
            f"kl is {short(kl.first)} at step {kl.steps[0]}, where policy and reference should be the same",
        )
    else:
        return None
    return Diagnosis(
        "temperature_mismatch",
        confidence,
        f"{why}, before an update can have moved the policy so far.",
        "Compare the log-probabilities kept while sampling with those computed anew on the same tokens: without an update they "
        "are equal to rounding. Then temperature (both sides divided by it?), top_p and top_k, another checkpoint or precision "
        "in the sampler, dropout left on. Where old log-probabilities are computed anew, as in PPO here, no log shows "
        "this. Notebook 09.",
    )
