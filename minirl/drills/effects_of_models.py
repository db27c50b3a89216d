"""What mistakes do in log-probabilities, in masked means and in the parts of a transformer: see minirl.drills.effects."""

MODELS: dict[str, dict[str, str]] = {
    "token_logprobs": {
        "picked_logits": "The loss falls below 0 without end: no token has to lose for another to win, and the logits "
        "just grow.",
        "picked_probabilities": "Tokens that the model finds unlikely get hardly any gradient: a slow start, and rare "
        "words are never learned.",
        "cross_entropy_for_logprobs": "All that is built on it runs backwards: SFT unlearns its data, and under PPO "
        "the score falls.",
        "softmax_over_positions": "The loss falls as it should, but positions compete and not tokens: the samples "
        "stay noise.",
        "shifted_again": "The model learns the token after next: the loss ends higher and the text skips words.",
        "likeliest_token": "The data are never looked at: the model only grows surer, entropy goes to 0 and samples "
        "repeat.",
    },
    "entropy": {
        "negative_entropy": "A bonus becomes a fine: exploration dies early, while the logged curve lies below 0.",
        "entropy_averaged": "V times too small: with a large vocabulary the log shows 0.000 and a bonus is not felt.",
        "entropy_of_logits": "The log drifts while the text stays; a bonus on it has no ceiling and pulls logits "
        "down, the likely ones most.",
        "entropy_unweighted": "It grows as the policy gets surer, so a bonus on it makes the entropy collapse.",
        "entropy_in_bits": "A curve 1.44 times as high, which cannot be compared; a bonus on it is stronger by as "
        "much.",
    },
    "response_slice": {
        "slice_at_the_tokens": "Each position is asked for the token it has just read: SFT's loss goes to 0 by "
        "copying, and samples repeat.",
        "slice_one_too_early": "Logprobs are those of a wrong state, far below those noted while sampling; SFT learns "
        "to skip a token.",
        "slice_of_the_prompt": "Answers are judged by what was predicted inside the prompt: the score wanders and "
        "goes nowhere.",
        "prompt_kept": "Mostly a shape error at once; where a mask is made to fit, the prompt is trained as if it "
        "were sampled.",
        "end_not_dropped": "Mostly a shape error at once; cut to fit at the front, it asks each position for the "
        "token just read.",
    },
    "sequence_logprobs": {
        "averaged_sequence": "DPO acts as if beta were length times smaller: on the stories it went 14 nats and more "
        "away and gained little.",
        "sequence_with_padding": "Pads enter DPO's margins: a pair is learned partly by how much shorter one answer "
        "is than the other.",
        "sum_of_padding": "Only pads are compared: DPO's accuracy on fresh pairs stays near one half, and the answers "
        "do not improve.",
        "negative_sequence": "DPO runs backwards: rejected answers become likelier, and the accuracy goes to 0.",
        "probability_of_sequence": "A long answer's probability is 0 in float32: no gradient at all, and DPO's loss "
        "stays at log 2.",
        "one_sum_for_all": "DPO sees one margin for the whole batch: the loss is soon settled while many pairs are "
        "still wrong.",
    },
    "masked_mean": {
        "mean_over_everything": "Logged means move with the padding: a KL or an entropy seems to change when only the "
        "widths did.",
        "mean_with_zeros": "Logged means shrink as the longest answer grows: a KL that seems to fall may be a wider "
        "batch.",
        "mean_of_the_padding": "A curve of numbers that no token produced, and NaN for each batch without padding.",
        "masked_sum": "Curves grow with batch and length; as a loss it keeps gradient clipping busy, and SGD diverges.",
        "mean_of_row_means": "Short answers count more: in a log hardly visible, in a loss it is GRPO's length bias.",
    },
    "masked_whiten": {
        "whitened_over_padding": "Whatever pads hold shifts all advantages: too much is praised, or too much blamed, "
        "and runs get noisier.",
        "whitened_with_zeros": "Advantages are not quite centred and too large, the more padding the more: the step "
        "size follows the widths.",
        "whitened_without_mask": "Advantages stand on pads too: under a loss without a mask the padding is what "
        "learns.",
        "whitened_by_unbiased_variance": "Nothing to see: with 1,000 tokens the advantages differ by a twentieth of a "
        "percent.",
        "whitened_row_by_row": "Good and bad answers get the same advantages: with one score an answer the reward "
        "stays flat.",
        "whitened_by_variance": "Scores ten times as large give a tenth of the step: every new reward needs another "
        "learning rate.",
        "scaled_only": "Little with a good critic, whose advantages average to 0; with a poor one all is praised or "
        "all is blamed.",
        "centred_only": "The scale of the scores sets the step under SGD; in the PPO study, with Adam, no difference "
        "was measured.",
        "padding_not_blanked": "Nothing under a masked loss; without a mask every pad is trained by one and the same "
        "number.",
        "negative_whitening": "Praise and blame are exchanged: the reward falls from the first update on.",
    },
    "token_mean": {
        "token_mean_over_everything": "Pads are learned along with the answers, and being easy they make the loss "
        "look too good.",
        "token_mean_with_zeros": "One long answer shrinks the whole batch's step: the effective learning rate changes "
        "from batch to batch.",
        "token_mean_by_rows": "Under GRPO right answers shrink and wrong ones grow: 2 tokens against 7 in our game, "
        "in place of about 5 each.",
        "token_mean_over_rows": "The same direction, larger by the mean length: Adam hardly notices, SGD needs a "
        "smaller rate, clipping is busy.",
        "token_mean_of_the_padding": "Only pads learn: the score stays flat, and a batch without padding gives NaN.",
        "negative_token_mean": "Every loss is climbed: SFT unlearns, the critic's error grows, the reward falls.",
    },
    "sequence_mean": {
        "sequence_mean_by_tokens": "Long answers weigh more, and GRPO's push towards short right and long wrong "
        "answers all but goes.",
        "rows_divided_by_width": "No length bias, as in Dr. GRPO, but one long answer makes every other one's step "
        "smaller.",
        "mean_of_row_sums": "Loss and gradient grow with the answers: no length bias, yet SGD needs a rate that falls "
        "with length.",
        "sequence_mean_over_everything": "A short answer is judged mostly by its padding, a long one by its words: "
        "the loss looks smooth and means little.",
        "sequence_mean_of_the_padding": "Pads learn and words do not; one row without padding, and the loss is NaN.",
        "sum_of_row_means": "Twice the batch, twice the step: Adam hides it, SGD and gradient clipping do not.",
    },
    "fixed_length_mean": {
        "fixed_length_by_tokens": "An answer's own length is back in the divisor: a length bias, faint in large "
        "batches and plain in pairs.",
        "fixed_length_without_rows": "A constant factor of B: Adam hardly notices, SGD diverges, gradient clipping "
        "acts at each step.",
        "fixed_length_of_the_table": "The divisor follows the longest answer of the batch: one rambling answer slows "
        "the learning of all.",
        "fixed_length_over_padding": "Pads are taught with the sign of their answer, and most by the shortest answers.",
        "fixed_length_of_the_padding": "What follows the end is taught and nothing before it: the score stays flat, a "
        "full batch does nothing.",
    },
    "masked_sum_over": {
        "sum_over_own_tokens": "Four micro-batches give about four times the gradient of one: saving memory changes "
        "the run.",
        "sum_over_nothing": "A loss in the thousands and gradient clipping at each step: Adam goes on almost as "
        "before, SGD diverges.",
        "sum_over_rows_too": "Larger micro-batches give smaller gradients: a setting meant for memory changes the "
        "step.",
        "sum_over_padding": "Pads are learned, the more the wider the micro-batch: other cuts of one batch give other "
        "gradients.",
        "sum_of_the_padding": "Words get no gradient at all: the loss moves, and the held-out loss or the score does "
        "not.",
    },
    "softmax": {
        "softmax_over_the_batch": "Other prompts in the batch change a prompt's samples; alone in a batch every token "
        "gets probability 1.",
        "softmax_of_the_table": "Rows share one sum: the loss is too high by about log of their number and changes "
        "with the batch.",
        "softmax_without_division": "Minus log of it is minus the logit: the loss falls below 0 without end and "
        "samples do not follow it.",
        "softmax_of_the_largest": "The loss is 0 once the right token is the likeliest, if by a hair: the model never "
        "becomes sure.",
        "shares_of_logits": "Negative weights: the sampler raises an error, and the first logarithm turns the loss "
        "into NaN.",
        "softmax_of_minus": "From scratch no curve shows it, since the network learns minus its logits; loaded "
        "weights write nonsense.",
        "log_of_softmax": "The sampler refuses negative weights, and a second logarithm gives NaN.",
        "sigmoids": "No token has to lose: all logits grow, the loss goes to 0, and the samples are as good as random.",
    },
    "naive_attention": {
        "attention_without_scale": "Wide heads look at one token from the start and learn slowly; small ones hardly "
        "suffer, loaded weights do.",
        "attention_scaled_by_width": "Attention begins almost uniform and the weights have to grow; loaded weights "
        "write blurred, forgetful text.",
        "attention_scaled_up": "Attention is all or nothing from the start: queries and keys get hardly any gradient, "
        "the loss stays high.",
        "attention_without_mask": "The training loss falls to nearly 0 by copying what comes next, and sampled text "
        "is nonsense.",
        "attention_mask_upside_down": "Each token reads the answer from the future: a tiny training loss, and samples "
        "that ignore the prompt.",
        "attention_mask_upside_down_to_infinity": "The loss is NaN at the first step, and the run stops there.",
        "causal_mask_of_its_own": "Fine on full rows; with padding on the left, prompts are read together with pads "
        "and samples get worse.",
        "itself_not_seen": "Each prediction is made from one token less: the loss settles above what the same model "
        "reaches.",
        "forbidden_scores_are_zero": "The future leaks in: the training loss is too good, and sampled text is worse "
        "than it promised.",
        "masked_after_softmax": "Early tokens get faint mixtures, and the sum leaks the future: samples are worse "
        "than the loss promises.",
        "softmax_over_queries": "A token's output changes when more text follows: sampling with a cache disagrees "
        "with training.",
        "keys_for_values": "The value projection gets no gradient; from scratch a higher loss, with loaded weights "
        "nonsense.",
        "attention_without_softmax": "The mixture grows with the text: short prompts work, long ones give huge "
        "activations and jumps in the loss.",
        "queries_for_keys": "From scratch nothing, for the two projections only change names; loaded weights write "
        "nonsense.",
    },
    "rms_norm": {
        "layer_norm_for_rms": "From scratch just as good; with loaded Llama weights the loss is higher from the first "
        "batch.",
        "norm_of_the_sum": "Activations are sqrt(D) times too small: loaded weights give nearly uniform text, new "
        "ones begin slowly.",
        "rms_without_root": "What is loud comes out faint and what is faint loud: training is shaky, loaded weights "
        "write nonsense.",
        "rms_without_weight": "The scales of the channels never learn: little is lost from scratch, much with loaded "
        "weights.",
        "rms_of_the_batch": "A text's logits depend on its neighbours and on its own future: samples differ from what "
        "training saw.",
        "rms_over_rows": "Sampling one token at a time, every channel becomes plus or minus its weight: a fine loss "
        "and broken text.",
        "one_plus_weight": "From scratch the network adapts; with loaded Llama weights every layer is too loud and "
        "the text nonsense.",
        "mean_absolute_norm": "About a quarter too loud for ordinary activations: new weights absorb it, loaded ones "
        "lose some quality.",
    },
    "rotary": {
        "turned_backwards": "From scratch just as good, a mirror image; with loaded weights before looks like after "
        "and the text falls apart.",
        "neighbours_paired": "From scratch just as good; with loaded Hugging Face weights wrong channels turn "
        "together and the text falls apart.",
        "positions_from_one": "Nothing: scores depend on distances only; beside a cache that counts from 0 all "
        "distances are off by one.",
        "one_speed": "About every six tokens the angles come round again: near and far look alike, and the loss on "
        "longer texts stays higher.",
        "faster_and_faster": "Later pairs spin up to thousands of radians a token, which is noise: distances are hard "
        "to read, the loss is higher.",
        "not_a_rotation": "Scores depend on the place and not on the distance, and at some places pairs collapse: "
        "longer texts suffer.",
        "half_the_exponent": "All but the first pair turn too fast: short texts train as well, loaded weights drift "
        "as the text grows.",
    },
    "lora_forward": {
        "lora_without_scale": "alpha does nothing: every run is that of alpha = rank, so with the usual 2 * rank half "
        "as strong.",
        "lora_scaled_by_alpha": "The correction is rank times too strong: the loss jumps at a usual learning rate, "
        "stored adapters shout.",
        "lora_by_root_of_rank": "sqrt(rank) times stronger, 4 times at rank 16: fine in training, too strong for a "
        "stored LoRA adapter.",
        "lora_without_base": "At the first step the layer says nothing, for B starts at 0: the loss jumps to that of "
        "a broken model.",
        "lora_subtracted": "From scratch nothing, since B learns the other sign; a stored adapter pushes the wrong "
        "way.",
        "base_scaled_too": "Unless alpha equals the rank the frozen model is rescaled: the loss is far too high "
        "before any step.",
        "rank_of_the_wrong_axis": "With 4,096 inputs and rank 16 it is 256 times too weak: at the usual rates next to "
        "nothing is learned.",
    },
}
