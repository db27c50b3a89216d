"""What mistakes do in preferences, PPO, rewards, text and weighted losses: see minirl.drills.effects."""

REWARDS: dict[str, dict[str, str]] = {
    "bradley_terry_loss": {
        "swapped_bradley_terry": "Accuracy on fresh pairs falls below one half, and a policy trained on it writes "
        "what people reject.",
        "unnegated_bradley_terry": "The loss falls without end and the accuracy to 0: the pair is driven apart, the "
        "wrong way round, with no brake.",
        "bradley_terry_without_log": "Pairs it gets badly wrong are given up; accuracy may look well, but differences "
        "are no log-odds any more.",
        "hinge": "The accuracy is about the same; differences stop at 1 and no longer tell how sure a preference is.",
        "mean_difference_first": "Easy pairs are pushed as hard as wrong ones: the loss falls to 0 while the accuracy "
        "lags.",
        "summed_pairs": "A constant factor of N: Adam hardly notices, SGD takes N times the step, gradient clipping "
        "acts always.",
        "plain_difference": "No pair is ever settled: the loss falls without end and scores run into the thousands.",
        "scores_judged_alone": "The level of each prompt has to be learned too, though it means nothing: more data "
        "for the same accuracy.",
    },
    "dpo_loss": {
        "swapped_dpo": "Accuracy falls from one half to zero and the model learns to write the rejected answers.",
        "unnegated_dpo": "The rejected answers win with no brake: the loss falls below 0 without end, and the text "
        "falls apart.",
        "dpo_without_reference": "The first loss is not log 2; the KL grows, and on the stories most of the gain in "
        "gold was lost.",
        "reference_added": "The first loss is not log 2, and text that the reference finds odd becomes common: the KL "
        "soars.",
        "dpo_without_beta": "Every run is that of beta = 1: where .1 was meant the policy stays much closer to the "
        "reference, and gains less.",
        "beta_outside": "beta no longer sets the distance: the optimum is that of beta = 1, and SGD's steps shrink "
        "with beta.",
        "divided_by_beta": "The knob works backwards: beta = .1 ties the policy down like 10, and it hardly moves.",
        "beta_on_the_policy_only": "The first loss is not log 2; at beta .1 the goal is the reference to the power "
        "10, a few stock phrases.",
        "dpo_without_log": "Half the gradient at the start, and pairs that are badly wrong are given up: accuracy "
        "rises slowly and stalls.",
        "summed_dpo": "A constant factor of N: under Adam the same run, under SGD a step that grows with the batch.",
        "dpo_mean_first": "All pairs are pushed alike, those in order too: margins of easy pairs grow while hard "
        "ones stay wrong.",
    },
    "robust_dpo_loss": {
        "label_smoothing_for_robust": "Flips are not undone and caution is added: at 15% flips it ended about .3 (TV) "
        "from an optimum that robust DPO met.",
        "robust_second_sign": "cDPO with a larger step: it stays too close to the reference, however many pairs there "
        "are.",
        "robust_not_divided": "A constant factor: Adam hardly notices, SGD takes 1 - 2e of the step.",
        "swapped_robust": "The rejected answers win, and as this loss has no floor they win ever farther: it falls "
        "far below 0.",
        "unnegated_robust": "The loss dives below 0 without end, accuracy goes to 0, and no pair is ever lost enough.",
        "swapped_shares": "The brake is gone: the surer a pair already is, the harder it is pushed, and the KL runs "
        "off.",
        "plain_dpo_for_robust": "Flips teach too much caution: at 15% of them it ended about .2 (TV) from the optimum "
        "that robust DPO met.",
    },
    "ipo_loss": {
        "twice_the_target": "The run of half the beta: every margin ends twice as wide and the policy farther from "
        "the reference.",
        "target_half_beta": "The target is almost 0 for a small beta: the margins close again and the score stays at "
        "the reference's.",
        "beta_inside_the_square": "Adam hardly notices; at beta .1 SGD crawls a hundred times more slowly.",
        "ipo_the_wrong_way": "Margins settle below zero: the accuracy goes to 0, and the rejected answers win by a "
        "bounded amount.",
        "ipo_without_reference": "The first loss is not 1 / (2 beta)^2; the reference's own preferences are levelled "
        "and the KL grows.",
        "negative_ipo": "The loss falls without end: margins run away from the target, downwards, and the text falls "
        "apart.",
        "ipo_mean_before_square": "The mean margin meets its target and the loss is near 0, while easy pairs run far "
        "and hard ones stay wrong.",
        "dpo_for_ipo": "Pairs with sure labels drift apart without end: the KL grows where IPO would stop at its "
        "margin.",
    },
    "simpo_loss": {
        "beta_times_gamma": "The margin is beta times larger: pairs are pushed for longer, and without a reference "
        "the text drifts more.",
        "gamma_added": "Pairs count as won while they are still lost: the margins stay small and the accuracy lower.",
        "simpo_without_gamma": "Pairs are let go as soon as they are won: smaller margins, a policy that has moved "
        "less.",
        "simpo_without_beta": "Pairs are let go later, at beta times the gap: the policy drifts farther, if with "
        "smaller steps under SGD.",
        "swapped_simpo": "The accuracy goes to 0, and with no reference to hold it the text soon is what readers "
        "reject.",
        "unnegated_simpo": "The loss falls below 0 without end: rejected answers win with neither a brake nor a "
        "reference.",
    },
    "orpo_loss": {
        "probabilities_for_odds": "The contrast is weaker where answers are likely: closer to plain SFT on the chosen "
        "ones.",
        "orpo_without_sft": "Both answers may get rarer as long as the rejected falls faster: the text decays while "
        "the accuracy rises.",
        "sft_the_wrong_way": "The chosen answers are unlearned: their logprobs fall, the loss runs below 0, the text "
        "falls apart.",
        "penalty_the_wrong_way": "With a small lam it looks like SFT; the accuracy falls, since rejected answers rise "
        "beside the chosen.",
        "swapped_odds": "Rejected answers are pulled up to the chosen ones and beyond: the SFT curve is fine, the "
        "accuracy is not.",
        "log_odds_with_plus": "Chosen answers above probability 1/2 a token are pushed down again: the surer the "
        "model, the odder the run.",
        "orpo_without_lam": "The run of lam = 1: ten times the usual contrast, so margins grow and the SFT term is "
        "drowned.",
        "sft_on_both": "Rejected answers are copied as well: margins hardly open and bad habits come back.",
    },
    "kto_loss": {
        "swapped_labels": "Undesirable answers become likelier and desirable ones rarer: the score falls while the "
        "loss goes down.",
        "one_sign_for_both": "Undesirable answers are raised like the others: SFT on everything, and the score stays "
        "flat.",
        "sign_of_z_forgotten": "Undesirable answers never count as rare enough and are pushed down for longer: the KL "
        "grows.",
        "kto_without_z": "As the KL grows desirable answers count as settled too early, undesirable ones too late: "
        "more is pushed down.",
        "negative_z": "Where the estimated KL happens to be negative the yardstick jumps: some noise, most of it "
        "early in the run.",
        "z_not_detached": "Desirable answers pull the KL down and undesirable ones push it up: the mix of labels sets "
        "a leash.",
        "kto_with_log": "Twice the slope at the start, and outliers never stop pulling: wrong labels do more harm.",
        "two_means": "The rarer kind weighs more: with one undesirable answer in ten it counts nine times a desirable "
        "one.",
        "kl_as_penalty": "A number in the log and no gradient, since z is data: the policy feels a run without z.",
    },
    "reinforce_loss": {
        "unnegated_reinforce": "The score falls to its floor: what scored well becomes rare.",
        "reinforce_over_padding": "Pads are taught whatever stands in their advantages, and the step shrinks as the "
        "padding grows.",
        "reinforce_divided_by_padding": "The right direction, a step that shrinks with the longest answer: a slower, "
        "uneven climb.",
        "reinforce_on_the_padding": "Only pads get a gradient: the score stays flat, the loss is 0 where nothing is "
        "padded.",
        "summed_reinforce": "The right direction, a step as large as the batch has tokens: SGD diverges, gradient "
        "clipping acts always.",
        "reinforce_on_probabilities": "Rare tokens get next to no gradient: what is unlikely now is never discovered, "
        "and entropy falls.",
        "reinforce_by_rows": "Short answers get larger steps a token: with positive advantages and no baseline "
        "brevity pays.",
    },
    "ppo_clip_loss": {
        "unnegated_ppo": "The score falls, and the clip does not brake it: the minimum slows only what was meant as "
        "progress.",
        "max_for_min": "Little with few updates a batch; with many the brake is gone, and mistakes inside a batch "
        "stay.",
        "max_for_negative_advantages": "A bad token that grew likelier is not pushed back before the next batch: it "
        "shows only with several epochs.",
        "ppo_without_clip": "Nothing in the PPO study at one epoch or two; at eight every run ended below its start.",
        "clipped_ratio_only": "A token that went the wrong way is stuck for the rest of the batch: with one update "
        "nothing shows.",
        "old_over_new": "Its gradient points the other way: the score falls, and the first loss looks like that of a "
        "sound run.",
        "ratio_without_exp": "At first only praised tokens get a gradient, nothing is pushed down: a slower climb and "
        "falling entropy.",
        "ratio_of_logprobs": "Likelier tokens have the smaller ratio: the score falls, hardest for tokens that were "
        "nearly certain.",
        "product_clipped": "The best tokens, with advantages above the ceiling, are never taught, and bad ones have "
        "no brake.",
        "ppo_over_padding": "Pads learn what stands in their advantages, and real tokens get a smaller step: a slower "
        "climb.",
        "ppo_divided_by_padding": "The step shrinks with the longest answer of the batch: Adam evens out some of it, "
        "SGD none.",
        "ppo_by_rows": "Tokens of short answers weigh more: GRPO's length bias, short where answers are good, long "
        "where they are bad.",
        "ppo_on_the_padding": "Real tokens get no gradient: ratios and clip fraction drift by shared weights alone, "
        "the score does not rise.",
        "whitened_inside": "Nothing if the loop whitens as well; a minibatch of one sign still gets half praise, "
        "half blame.",
    },
    "kl_shaped_rewards": {
        "kl_rewarded": "Distance is paid for: in the PPO study more than 300 nats after 30 steps, and no sentence "
        "left.",
        "score_subtracted": "The policy looks for what the judge likes least: the score falls step by step.",
        "score_on_the_last_column": "Only the longest answers of a batch are paid: advantages are small from step 1, "
        "and the score hardly rises.",
        "shaped_without_mask": "Short answers lose their score to a pad, and logged rewards and returns include "
        "charges that nobody earned.",
        "score_masked_away": "Only the longest answers have a score: where it is positive lengths grow, where it is "
        "negative they shrink.",
        "score_after_the_end": "The score lands on a pad or nowhere: the KL stays at 0 and the score at its start.",
        "score_before_the_end": "The end token never hears of the score: what to write is learned, when to stop is "
        "not.",
        "score_two_before_the_count": "Whether to stop is never learned, and a row of one token is paid in the "
        "padding.",
        "scores_in_every_row": "Each answer is paid for its neighbours: the reward hardly climbs, the larger the "
        "batch the less.",
        "score_on_every_token": "Length pays: in the PPO study stories grew to 37 to 40 of 40 tokens, the proxy up, "
        "the gold far down.",
        "score_on_the_first_token": "Only the first word learns from the score; all later ones are merely held by the "
        "KL.",
        "score_replaces_kl": "The last token is free of charge: endings drift a little, and hardly any curve shows it.",
        "kl_of_the_padding": "Nothing if GAE masks; else short answers pay for pads they did not write, and lengths "
        "drift.",
        "kl_at_the_end": "At gamma = lam = 1 right on average; each token answers for the charges of all, so the run "
        "is noisier.",
        "mean_kl_everywhere": "An odd word costs as little as its neighbours: the leash holds answers, not words, and "
        "credit is blurred.",
        "score_times_kl_coef": "A nat costs one point whatever kl_coef says: whitening hides the scale, and the "
        "policy hardly moves.",
        "kl_without_coefficient": "The run of kl_coef = 1: in the PPO study about half a nat of KL and little gain.",
    },
    "missing_eos_penalty": {
        "finished_punished": "Running on is the better deal: lengths grow to the limit and the share of finished "
        "answers falls.",
        "penalty_added": "Never ending earns a bonus: hardly an answer finishes after a while, whatever it says.",
        "score_replaced": "Where scores lie below minus the penalty, running on pays; unfinished answers learn "
        "nothing but to end.",
        "everyone_punished": "A constant, which any baseline cancels: the share of finished answers does not rise.",
        "score_multiplied": "At penalty 1 nothing; above it good unfinished answers earn more, below it bad ones lose "
        "less.",
    },
    "last_token": {
        "last_column": "A text's score changes with the padding of its batch: accuracy suffers, and alone it is "
        "judged otherwise.",
        "token_after_the_last": "Scores are read off a pad, but for full rows off the end: the longest answers get "
        "another yardstick.",
        "token_before_the_last": "Whether an answer ended never reaches its score: a policy may stop ending "
        "unpunished.",
        "token_two_before_the_count": "As one too early, and rows of one token are scored in the padding: more noise "
        "in the pairs.",
        "first_token_score": "It cannot tell two answers to one prompt apart: accuracy stays at one half, the loss at "
        "log 2.",
        "mean_score": "Early tokens, which saw no ending, have a say: a good end counts for little in a long answer.",
        "summed_score": "The score has no bound: a policy piles up what the judge likes, the proxy soars and gold "
        "falls.",
        "best_score": "One lucky word pays for a whole answer: the policy places it and then rambles.",
    },
    "ensemble_reward": {
        "daring_ensemble": "The policy is paid for going where the judges disagree: it hacks sooner than with one "
        "judge.",
        "plain_mean_of_members": "It hacks like a single judge: three on a third of the labels each did worse than "
        "one with all.",
        "spread_over_responses": "Scores belong to members and not to answers: noise, and the policy learns nothing.",
        "variance_subtracted": "Small disagreements are nearly free and large ones cost much more: caution depends on "
        "the scale of the scores.",
        "worst_member": "Much the same with three; with many members one pessimist decides, and good answers are "
        "fined.",
        "spread_of_the_population": "A little less caution: .71 of it with two members, .82 with three.",
        "caution_ignored": "The knob does nothing: every run is that of caution 1.",
    },
    "length_penalty": {
        "length_paid": "Answers grow to the limit, since every token beyond free_length earns.",
        "width_charged": "One charge for the whole batch, which any baseline cancels: lengths do not fall.",
        "bonus_for_brevity": "Answers keep shrinking below free_length, until brevity costs more correctness than it "
        "earns.",
        "nothing_is_free": "Tokens cost from the first one on: working is dropped where an answer at once pays almost "
        "as well.",
        "all_tokens_charged": "A cliff at free_length: lengths pile up just below it, and longer work is dropped at "
        "once.",
        "mean_length_charged": "No answer is told that it is too long: the charge cancels in the baseline and lengths "
        "stay.",
    },
    "bpe_merge": {
        "first_pair_only": "The pair is still the most frequent in the next round: the vocabulary fills with copies "
        "of one merge.",
        "second_token_kept": "Texts do not come back: every merge leaves half a pair behind, and decoding stutters.",
        "merged_from_the_right": "Other tokens in runs such as aaa: texts still come back, but not as the tokenizer's "
        "stored ids.",
        "either_order": "Texts do not come back: what was written ba is read as ab.",
        "last_token_lost": "Each merge eats the end of the text, the end token first: the model never learns to stop.",
        "first_token_enough": "Whatever follows the first token is swallowed: texts come back as other texts.",
    },
    "sft_loss": {
        "sft_without_shift": "The loss falls to nearly 0 in a few steps by copying, and samples repeat one token for "
        "ever.",
        "sft_shifted_backwards": "The loss falls to nearly 0, for the answer has been read already; samples swing "
        "between two tokens.",
        "sft_mask_not_shifted": "Openings stay those of the base model, and one pad after each end is learned instead.",
        "sft_on_everything": "The loss is an average with prompts and padding, and in our study learning took up to "
        "twice the steps.",
        "sft_divided_by_everything": "Loss and step are too small, the more padding the more: Adam evens out most of "
        "it.",
        "sft_on_the_prompt": "The model learns to write prompts and pads: its answers stay what they were.",
        "sft_unnegated": "The loss falls without end: the examples become the last thing that the model would write.",
        "sft_by_rows": "Short answers and their end tokens weigh more: slightly shorter samples, a loss that hardly "
        "differs.",
        "sft_end_not_learned": "The loss looks right, and samples run on until they are cut off: nothing ever taught "
        "the model to stop.",
        "sft_softmax_twice": "The loss starts near log V as it should and hardly falls: softmax of probabilities is "
        "almost flat.",
        "sft_summed": "A loss in the hundreds: Adam hardly notices, SGD diverges, gradient clipping acts at each step.",
    },
    "kv_cache_step": {
        "appended_too_late": "Training is not touched; samples get worse, and the sampler's logprobs differ from a "
        "full pass.",
        "sees_itself_alone": "Samples forget the prompt: each token follows from the one before it, and the text "
        "babbles.",
        "cache_not_grown": "The prompt is seen but not what has been written since: samples go in circles.",
        "prepended": "Attention does not mind the order, so texts look right until something masks or cuts by "
        "position.",
        "last_overwritten": "Of the text since the prompt only the newest token is known: samples lose the thread at "
        "once.",
        "key_stored_twice": "The prompt is read well, new words come back as noise: samples decay as they grow.",
        "step_without_scale": "Samples attend more sharply than in training, and their logprobs disagree with a full "
        "pass: PPO's ratio is off.",
    },
    "nucleus": {
        "crossing_token_dropped": "Samples have less variety than asked for, close to greedy where one token leads.",
        "cut_where_the_sum_passes": "Sampling stops with NaN as soon as one token holds more than top_p.",
        "gathered_back": "Text turns to noise: probabilities belong to other tokens.",
        "nucleus_not_renormalised": "Samples are the same, as multinomial divides itself; their logprobs come out too "
        "low.",
        "tail_kept": "Samples consist of the least likely tokens: gibberish from the first word on.",
        "left_in_order": "Token 0 always gets the largest probability: gibberish from the beginning of the vocabulary.",
        "probability_above_top_p": "At .9 almost greedy, whatever the shape of the distribution: samples repeat each "
        "other.",
        "one_token_more": "Now and then one odd word slips in: a little more variety than asked for, no curve shows "
        "it.",
        "nothing_cut": "Every run is that of top_p = 1: an odd token now and then derails long samples.",
    },
    "pass_at_k": {
        "pass_with_replacement": "The curve lies too low, most where few answers are right: a base model looks weaker "
        "than it is.",
        "pass_at_one": "The curve is flat in k: what a base model solves in many tries stays unseen, and RL looks "
        "like all gain.",
        "chance_to_miss": "The curve falls with k, and the better model has the lower one.",
        "all_k_right": "The curve falls with k: it shows how reliable a model is, not what it can reach.",
        "k_times_the_share": "The curve shoots up and hits 1 at k = n / correct: every model seems to solve what it "
        "ever solved.",
        "any_of_n": "The same for every k, and at small k far too good: n tries in place of k.",
    },
    "cispo_loss": {
        "weight_not_detached": "Where a logprob is below -1 the gradient turns round: rare good tokens are pushed "
        "down, and the score stalls.",
        "weight_without_ceiling": "Nothing with one update; with more, a few tokens that grew fast rule the batch and "
        "gradient norms spike.",
        "weight_with_floor": "Tokens that became rare keep a full weight: bad ones are pushed on and on, which is "
        "hard to see.",
        "absolute_ceiling": "At the default nearly all weights are .2: REINFORCE with a fifth of the step, which Adam "
        "hides.",
        "ppo_for_cispo": "Rare turning words fall silent once clipped, which CISPO is there to avoid; with few "
        "updates nothing shows.",
        "cispo_without_weight": "Nothing at the first update; stale batches mislead: without ratios PPO at four "
        "epochs lost two runs of three.",
        "unnegated_cispo": "The score falls step by step, and no clip stands in the way.",
        "cispo_by_rows": "GRPO's length bias comes back: short right answers and long wrong ones.",
        "cispo_old_over_new": "Nothing at the first update; later what became rare counts more and what grew counts "
        "less: drift goes on.",
    },
    "weighted_logprob_loss": {
        "unnegated_weighted": "The best answers are unlearned first: the score falls and the loss runs below 0 "
        "without end.",
        "weights_ignored": "SFT on the model's own samples: it stays where it is, and the score is flat but for noise.",
        "weighted_over_padding": "Pads are learned with their answer's weight: in samples the end may come early, the "
        "score lags.",
        "weighted_divided_by_padding": "The step shrinks as the padding grows: a slower climb when one answer runs "
        "long.",
        "divided_by_the_weights": "Nothing much where weights have mean 1; with centred ones the sum is near 0, so "
        "the loss explodes or flips.",
        "weighted_by_rows": "Tokens of short answers weigh more: copied answers get a little shorter, and little else "
        "shows.",
        "weighted_on_the_padding": "Only what follows the end is learned: the score stays flat, an unpadded batch "
        "does nothing.",
    },
}
