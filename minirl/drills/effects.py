"""What each mistake does to a training run, in one sentence: what a learner would see on the curves or in the samples.

By function and then by mutant, in the order of the bank: here those of advantages, critics, groups and KL, in two more
files the rest. "The PPO study" and the like are those of data/studies; a number without a study is arithmetic.
"""

from minirl.drills.effects_of_models import MODELS
from minirl.drills.effects_of_rewards import REWARDS

EFFECTS: dict[str, dict[str, str]] = {
    "discounted_returns": {
        "returns_from_the_past": "A score at the end reaches the last token alone: when to stop is learned, what to "
        "say is not.",
        "undiscounted_returns": "Nothing where gamma is 1, as for text; in games the far future counts in full and "
        "the curve is noisier.",
        "own_reward_discounted": "Every return is gamma times too small: Adam hardly notices, and a critic's values "
        "come out as much too low.",
        "returns_over_padding": "Harmless while rewards are 0 in the padding; else short answers are judged by what "
        "nobody wrote.",
        "returns_without_mask": "Returns of pads enter every mean that has no mask: the baseline and the whitening "
        "drift with the padding.",
        "whole_return_everywhere": "With one score at the end and gamma 1 nothing changes; with rewards on the way "
        "more noise, so a slower climb.",
        "discounted_from_the_start": "Late tokens hardly learn, since their step shrinks with their place; at gamma 1 "
        "nothing changes.",
        "returns_minus_what_is_ahead": "With a score at the end praise and blame alternate from token to token, and "
        "the reward goes nowhere.",
    },
    "gae": {
        "value_added": "Targets hold the critic's own values several times: values and value loss run away, and the "
        "reward goes nowhere.",
        "bootstraps_from_padding": "Each early stop is paid the value of a pad: with positive values answers shrink, "
        "with negative ones they grow.",
        "recursion_over_padding": "At gamma = lam = 1 the pads' values cancel; at a smaller lam every early stop is "
        "paid for them and lengths drift.",
        "gae_without_mask": "Lengths drift where lam is below 1, and advantages of pads spoil any whitening or mean "
        "that has no mask.",
        "recursion_without_gamma": "Nothing at gamma 1, as for text; in games credit reaches too far back and the "
        "advantages are noisier.",
        "recursion_without_lam": "Every lam gives the run of lam = 1: a poor critic does no harm, the noise is "
        "larger, and the knob does nothing.",
        "td_error_without_gamma": "Nothing at gamma 1; below it values come out too large, as if the future were "
        "hardly discounted.",
        "lam_in_the_td_error": "As if gamma were lam: with positive scores the policy learns to stop early, with "
        "negative ones to go on.",
        "td_error_without_next_value": "Once the critic has adapted, a token answers for its own reward alone: only "
        "the last one hears of the score.",
        "td_errors_only": "This is lam = 0: with a learned critic the PPO study ended with less gold than it began "
        "with.",
        "recursion_forwards": "A token is praised for what came before it: on average that teaches what lam = 0 does, "
        "with noise on top.",
        "monte_carlo_returns": "The critic fits noisier targets and explains less; the policy feels it through the "
        "critic only, at lam 1 not at all.",
        "advantages_for_returns": "The critic settles at about half of the returns, so that half the baseline is "
        "missing: noisier and slower.",
        "returns_minus_values": "The critic settles at about a third of the returns: explained variance stays poor "
        "and advantages noisy.",
        "whitened_too_early": "The critic never learns the level of the scores: its targets lie around its own "
        "values, value loss stays near 1/2.",
        "values_in_the_padding": "Nothing while the value loss is masked; else pads add errors of 0 and explained "
        "variance looks too good.",
    },
    "value_loss": {
        "value_loss_without_half": "The critic weighs twice as much, as with value_coef doubled; on a network of its "
        "own Adam hides it.",
        "negative_value_loss": "The critic flees from the returns: value loss falls without end, explained variance "
        "too, and a shared trunk is lost.",
        "absolute_value_loss": "Values become medians: where most answers score 0 they stay at 0, and a rare success "
        "is never foreseen.",
        "value_loss_over_padding": "The critic also learns to say 0 on pads: the loss changes with the longest "
        "answer, and a shared trunk pays for it.",
        "value_loss_divided_by_padding": "One long answer in the batch and the critic's weight shrinks: its loss "
        "looks small and it learns more slowly.",
        "mean_before_square": "Only the mean of the values is fitted: the loss is soon near 0, explained variance "
        "stays there too.",
        "value_loss_on_the_padding": "Values of real tokens learn nothing: explained variance stays at or below 0 "
        "while the loss falls.",
    },
    "value_clip_loss": {
        "smaller_error_kept": "A value that moved the wrong way stays there until the next batch; where values move "
        "little nothing shows.",
        "clipped_value_only": "A value outside its interval gets no gradient, not even back: the critic lags when a "
        "batch is used often.",
        "value_not_clipped": "In the PPO study nothing at all, for no value ever left its interval; with large steps "
        "values may jump.",
        "value_clip_without_half": "As with value_coef doubled: a critic on the policy's trunk pulls twice as hard at "
        "its features.",
        "negative_value_clip": "Value loss dives below 0, values run away from the returns, and advantages become "
        "noise.",
        "value_clipped_as_a_ratio": "Values near 0 have no room to move and large ones plenty: a critic that starts "
        "at 0 starts slowly.",
        "value_clipped_between_crossed_ends": "Negative values are pinned to one end: the critic learns nothing "
        "below zero.",
        "value_clip_over_padding": "Pads are fitted as well: the loss moves with the width of the batch and the "
        "critic learns answers more slowly.",
    },
    "group_relative_advantages": {
        "population_std": "All advantages grow by sqrt(G / (G - 1)), 1.41 in pairs and 1.03 at 16: Adam hides it.",
        "whole_batch_relative": "Easy prompts are praised and hard ones blamed, whatever is written: right on "
        "average, noisier, so slower.",
        "spread_of_the_batch": "Very easy and very hard prompts lose their extra weight, as in Dr. GRPO: another "
        "objective, not a worse one.",
        "without_eps": "The first group with equal scores makes the loss NaN, and after that step all weights are.",
        "divided_by_variance": "Groups that nearly agree shout: one success in 16 counts four times what it should, "
        "and gradient norms spike.",
        "not_centred": "The first group of all-right answers gets 1 / eps, ten thousand: the gradient norm explodes "
        "and the text with it.",
        "not_divided": "Prompts of every difficulty count alike; where all are about equally hard our study saw no "
        "difference.",
        "interleaved_relative": "Answers compete with those to other prompts: easy prompts win, hard ones lose, and "
        "the curve climbs more slowly.",
        "negative_relative": "The reward falls to its floor, while the loss stays near 0 as in a sound run.",
    },
    "group_centered_advantages": {
        "whole_batch_centred": "Nearly all answers to an easy prompt are praised, all to a hard one blamed: noise, "
        "and no group is ever dead.",
        "centred_and_divided": "Prompts that are almost always or never solved weigh more: 1.4 times in groups of 8, "
        "more in larger ones.",
        "centred_on_the_others": "The same direction, G / (G - 1) times as long, twice in pairs: Adam hardly notices, "
        "SGD takes larger steps.",
        "interleaved_centred": "The baseline comes from other prompts: right on average, but how hard a prompt is "
        "comes back as noise.",
        "negative_centred": "What is worse than its group is praised: the score falls from the first step on.",
        "plain_rewards": "With scores of 0 and 1 nothing is ever pushed down; with all scores positive even the worst "
        "answers are praised.",
    },
    "leave_one_out_advantages": {
        "own_reward_in_the_baseline": "The same direction, (G - 1) / G as long: Adam hardly notices, SGD wants a "
        "larger learning rate.",
        "others_divided_by_group_size": "Still unbiased, but part of the mean score praises everything: in pairs half "
        "the baseline is gone.",
        "one_left_out_of_the_batch": "Unbiased and noisier: on easy prompts even poor answers are praised, on hard "
        "ones even good ones blamed.",
        "sum_of_the_others": "In larger groups with positive scores nearly every answer is blamed: unbiased, but the "
        "noise drowns the signal.",
        "interleaved_leave_one_out": "Baselines come from other prompts' answers: no bias, yet the spread between "
        "prompts slows the climb.",
        "negative_leave_one_out": "Answers worse than their siblings become likelier, and the score sinks to its "
        "floor.",
    },
    "exponential_weights": {
        "weights_that_sum_to_one": "The gradient is B times smaller: under Adam the same run, under SGD hardly any "
        "motion.",
        "scores_times_beta": "The knob works backwards: a small beta, meant to be greedy, weighs all alike, and the "
        "score stays flat.",
        "weights_without_beta": "Every run is that of beta = 1, however greedy or careful it was meant to be.",
        "unnormalised_weights": "The better the scores, the larger the step: good batches jump, bad ones do nothing, "
        "and exp may overflow.",
        "best_weighs_least": "The policy copies its worst answers, and the score falls with every round.",
        "weights_in_proportion": "Weak selection for positive scores; with mixed signs weights turn negative or huge, "
        "and the loss jumps.",
    },
    "grpo_loss": {
        "kl_subtracted": "Distance is paid for, and more the farther: the KL soars and the text falls apart, even "
        "when all scores are 0.",
        "unnegated_grpo": "The score falls below its start; the KL, still a price, keeps it from falling all the way.",
        "grpo_without_kl": "The run of kl_coef = 0: the proxy rises faster, the KL grows, and against a learned judge "
        "gold falls.",
        "k1_in_the_loss": "The KL grows as if kl_coef were 0; divided by each answer's length it also lengthens "
        "answers.",
        "k2_in_the_loss": "Near the reference no difference; far from it tokens that grew are held harder and lost "
        "ones less called back.",
        "swapped_k3_in_the_loss": "Tokens that grew likely are pulled back exponentially hard: a tight and spiky "
        "leash, with less score for it.",
        "kl_to_the_old_policy": "As if kl_coef were 0: the logged KL stays near 0 while the distance to the real "
        "reference grows.",
        "grpo_by_tokens": "Right answers no longer shrink while wrong ones grow: in our game both kept one length.",
        "grpo_without_clip": "Nothing with one update a batch; in the PPO study eight epochs without a clip ended "
        "below the start.",
        "grpo_max_for_min": "Nothing at ratio 1; over several updates the brake is gone and what went the wrong way "
        "gets no gradient.",
        "grpo_over_padding": "Pads are praised and blamed along with their answers, and a short answer is mostly its "
        "padding.",
        "grpo_divided_by_padding": "Dr. GRPO by accident: no length bias, but one long answer makes the whole batch's "
        "step small.",
        "grpo_row_sums": "No length bias, as in Dr. GRPO, but a gradient that is larger by the length of the "
        "answers: clipping acts at each step.",
    },
    "gspo_loss": {
        "product_ratio": "The ratio explodes with length: after one update nearly all long answers are clipped and "
        "teach nothing.",
        "arithmetic_mean_of_ratios": "The same gradient at ratio 1; later one token that grew tenfold gets its whole "
        "answer clipped.",
        "ratio_per_token": "With a clip as narrow as GSPO's nearly every token falls silent after the first update on "
        "a batch.",
        "responses_weighted_by_length": "Long answers pull harder, as under a token mean: GSPO's taste for short "
        "right answers is gone.",
        "divided_by_padded_length": "Short answers have ratios nearer 1 and smaller steps: one long neighbour slows "
        "them all.",
        "unnegated_gspo": "The score falls, and the clip does not slow it down: it brakes only what is meant to be "
        "progress.",
        "gspo_without_clip": "Nothing with one update a batch; with several the KL to the sampler climbs without a "
        "brake.",
    },
    "kl_k1": {
        "reversed_k1": "The log shows a KL below zero that keeps falling; in the reward distance is paid, and the "
        "policy bolts.",
        "absolute_k1": "The logged KL is too high; in the reward tokens that grew rarer are fined and not paid, so "
        "the optimum is missed.",
        "ratio_for_k1": "The log starts at 1 a token and not at 0; in the reward each token costs kl_coef, so answers "
        "get shorter.",
        "weighted_k1": "Rare words are hardly charged: odd text slips through the leash while the logged KL looks "
        "small.",
    },
    "kl_k2": {
        "k2_without_half": "A leash twice as tight, the run of 2 * kl_coef, and a log that shows twice the KL.",
        "negative_k2": "The logged KL is negative; in the loss distance is paid, ever more, and the policy runs away.",
        "k2_without_square": "In the loss its mean gradient is zero, a leash that does not hold; in the log it is "
        "half the KL.",
        "k2_of_probabilities": "Only common tokens feel the leash: rare ones may become a hundred times likelier "
        "almost for free.",
    },
    "kl_k3": {
        "swapped_k3": "Still positive, so no log betrays it, but far from the reference it is much too large and "
        "spikes.",
        "k3_plus_log_ratio": "The log averages to minus the KL; in the loss its mean gradient is k3's, under much "
        "noise.",
        "negative_k3": "The log stays below zero, and the loss pays for distance: the KL soars and the text falls "
        "apart.",
        "k3_without_one": "The log shows 1 a token too much; in the loss no gradient changes, in the reward answers "
        "get shorter.",
        "k3_without_log_ratio": "The log hovers around 0; in the loss only noise is added, in the reward what the "
        "reference likes is fined.",
    },
    "kl_exact": {
        "reversed_kl_exact": "Positive too, so no log betrays it; as a loss it keeps all habits of the reference "
        "alive instead of what pays.",
        "kl_div_without_log_target": "The KL is NaN from the first step, and as a part of the loss it makes every "
        "weight NaN.",
        "kl_exact_under_the_reference": "The log shows a KL below zero; as a loss it pays for forgetting what the "
        "reference would write.",
        "kl_exact_averaged": "V times too small: with 50,000 tokens the log shows 0.000 and the leash is not felt.",
        "kl_exact_unweighted": "Tokens that nobody writes decide: as a loss it makes likely tokens likelier, and the "
        "entropy falls.",
        "kl_exact_of_logits": "The logged KL drifts and can be negative; as a loss it also pulls logits down, the "
        "likely ones most.",
        "negative_kl_exact": "The KL in the log is below zero, and as a loss each step away from the reference is a "
        "gain.",
    },
    "AdaptiveKL": {
        "ControllerTheWrongWay": "Above the target the price falls and the KL runs off; below it the policy is tied "
        "down ever harder.",
        "ControllerWithoutClip": "One outlier throws the price up, and the policy is tied down for many steps: both "
        "curves swing.",
        "AddingController": "A small price changes by a large share, and can fall below 0, where distance is paid; a "
        "large one barely moves.",
        "ControllerWithoutSteps": "The price moves slower by the size of the batch: a flat line, and the KL never "
        "comes near its target.",
        "ControllerWithAbsoluteError": "With a target of several nats the price goes up or down at full speed all the "
        "time: the KL swings around it.",
        "DoublingController": "The price jumps by factors of two and the KL swings with it; inside its band nothing "
        "corrects it.",
        "ControllerWithLimit": "The price only ever rises: after one early overshoot the policy stays tied below its "
        "target.",
    },
    **MODELS,
    **REWARDS,
}
