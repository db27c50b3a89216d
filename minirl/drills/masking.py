"""Wrong versions of the masked means and of whitening."""

import torch

from minirl.drills.bank import Case, Drill, masked_cases, numbers, right, wrong
from minirl.masking import fixed_length_mean, masked_mean, masked_sum_over, masked_whiten, sequence_mean, token_mean

# The mean over what counts


@right(masked_mean)
def right_mean(x, mask):
    return (x * mask).sum() / mask.sum()


@wrong(masked_mean, "The mask is not used: padding is averaged too.")
def mean_over_everything(x, mask):
    return x.mean()


@wrong(masked_mean, "Padding is set to 0, but still divided by: divide by mask.sum(), not by the size of the table.")
def mean_with_zeros(x, mask):
    return (x * mask).mean()


@wrong(masked_mean, "The mask is upside down: True means that an entry counts.")
def mean_of_the_padding(x, mask):
    return x[~mask].mean()


@wrong(masked_mean, "The division is missing: this is the sum.")
def masked_sum(x, mask):
    return (x * mask).sum()


@wrong(
    masked_mean, "Each row is averaged on its own, which is sequence_mean: here every counted entry weighs the same."
)
def mean_of_row_means(x, mask):
    return ((x * mask).sum(1) / mask.sum(1).clamp(min=1)).sum() / mask.any(1).sum()


# Whitening


@right(masked_whiten)
def right_whitening(x, mask, *, eps=1e-8):
    return (x - x[mask].mean()) * torch.rsqrt(x[mask].var(correction=0) + eps) * mask


@wrong(masked_whiten, "Mean and variance are taken over the padding too: use the counted entries only.")
def whitened_over_padding(x, mask, *, eps=1e-8):
    return ((x - x.mean()) * torch.rsqrt(x.var(correction=0) + eps)) * mask


@wrong(
    masked_whiten,
    "Padding entered the mean and the variance as zeros: divide by mask.sum(), and blank x - mean as well.",
)
def whitened_with_zeros(x, mask, *, eps=1e-8):
    x = x * mask
    return ((x - x.mean()) * torch.rsqrt(x.var(correction=0) + eps)) * mask


@wrong(masked_whiten, "The mask is not used at all: padding enters the mean and the spread, and is not 0 afterwards.")
def whitened_without_mask(x, mask, *, eps=1e-8):
    return (x - x.mean()) / (x.std() + eps)


@wrong(
    masked_whiten,
    "The variance divides by n - 1: ours is the population's, which divides by n, as in OpenAI's code.",
    seen="TRL, which chose it",
)
def whitened_by_unbiased_variance(x, mask, *, eps=1e-8):
    return ((x - x[mask].mean()) * torch.rsqrt(x[mask].var() + eps)) * mask


@wrong(
    masked_whiten,
    "Each row is whitened on its own: with a score at the end and gamma 1, every advantage becomes 0. Whiten the batch.",
    seen="a common tutorial, on the returns of one trajectory",
)
def whitened_row_by_row(x, mask, *, eps=1e-8):
    count = mask.sum(1, keepdim=True).clamp(min=1)
    centred = (x - (x * mask).sum(1, keepdim=True) / count) * mask
    return centred * torch.rsqrt((centred**2).sum(1, keepdim=True) / count + eps)


@wrong(masked_whiten, "This divides by the variance: divide by its root, the standard deviation.")
def whitened_by_variance(x, mask, *, eps=1e-8):
    return (x - x[mask].mean()) / (x[mask].var(correction=0) + eps) * mask


@wrong(masked_whiten, "The mean is not subtracted.", seen="codebases where shift_mean=False means that")
def scaled_only(x, mask, *, eps=1e-8):
    return x * torch.rsqrt(x[mask].var(correction=0) + eps) * mask


@wrong(masked_whiten, "The division by the standard deviation is missing.")
def centred_only(x, mask, *, eps=1e-8):
    return (x - x[mask].mean()) * mask


@wrong(masked_whiten, "Right where it counts, but -mean / std is left in the padding: the result is 0 there.")
def padding_not_blanked(x, mask, *, eps=1e-8):
    return (x - x[mask].mean()) * torch.rsqrt(x[mask].var(correction=0) + eps)


@wrong(masked_whiten, "The sign is wrong: x - mean.")
def negative_whitening(x, mask, *, eps=1e-8):
    return (x[mask].mean() - x) * torch.rsqrt(x[mask].var(correction=0) + eps) * mask


# Reducers


@right(token_mean)
def right_token_mean(x, mask):
    return (x * mask).sum() / mask.sum()


@wrong(token_mean, "The mask is not used: padding is averaged too.")
def token_mean_over_everything(x, mask):
    return x.mean()


@wrong(token_mean, "Padding is set to 0, but still divided by: divide by mask.sum(), not by B * T.")
def token_mean_with_zeros(x, mask):
    return (x * mask).mean()


@wrong(token_mean, "This is sequence_mean: each row is averaged first, so that a short answer's tokens weigh more.")
def token_mean_by_rows(x, mask):
    return ((x * mask).sum(1) / mask.sum(1).clamp(min=1)).sum() / mask.any(1).sum()


@wrong(token_mean, "The sum is divided by the number of rows: divide by the number of counted tokens.")
def token_mean_over_rows(x, mask):
    return (x * mask).sum() / len(x)


@wrong(token_mean, "The mask is upside down: True means that a token counts.")
def token_mean_of_the_padding(x, mask):
    return x[~mask].mean()


@wrong(token_mean, "The sign is wrong: a reducer averages what it is given; the loss does the negating.")
def negative_token_mean(x, mask):
    return -(x * mask).sum() / mask.sum()


@right(sequence_mean)
def right_sequence_mean(x, mask):
    return ((x * mask).sum(1) / mask.sum(1).clamp(min=1)).sum() / mask.any(1).sum()


@wrong(sequence_mean, "This is token_mean: average each row over its own length first, then the rows.")
def sequence_mean_by_tokens(x, mask):
    return (x * mask).sum() / mask.sum()


@wrong(sequence_mean, "Each row is divided by the padded length T: divide by its own number of counted tokens.")
def rows_divided_by_width(x, mask):
    return (x * mask).mean()


@wrong(sequence_mean, "The rows are summed, not averaged over their tokens: divide each by its length.")
def mean_of_row_sums(x, mask):
    return (x * mask).sum(1).mean()


@wrong(sequence_mean, "The mask is not used: padding is averaged too.")
def sequence_mean_over_everything(x, mask):
    return x.mean(1).mean()


@wrong(sequence_mean, "The mask is upside down: True means that a token counts.")
def sequence_mean_of_the_padding(x, mask):
    return ((x * ~mask).sum(1) / (~mask).sum(1)).mean()


@wrong(sequence_mean, "The rows are added up: take the mean over them.")
def sum_of_row_means(x, mask):
    return ((x * mask).sum(1) / mask.sum(1).clamp(min=1)).sum()


@right(fixed_length_mean)
def right_fixed_length(length):
    return lambda x, mask: (x * mask).sum() / (len(x) * length)


@wrong(fixed_length_mean, "This divides by the counted tokens: the divisor is B * length, the same for every batch.")
def fixed_length_by_tokens(length):
    return lambda x, mask: (x * mask).sum() / mask.sum()


@wrong(fixed_length_mean, "The rows are not counted: divide by B * length.")
def fixed_length_without_rows(length):
    return lambda x, mask: (x * mask).sum() / length


@wrong(fixed_length_mean, "The length is that of the padded table: it is the constant that was given.")
def fixed_length_of_the_table(length):
    return lambda x, mask: (x * mask).sum() / x.numel()


@wrong(fixed_length_mean, "The mask is not used: padding is added up too.")
def fixed_length_over_padding(length):
    return lambda x, mask: x.sum() / (len(x) * length)


@wrong(fixed_length_mean, "The mask is upside down: True means that a token counts.")
def fixed_length_of_the_padding(length):
    return lambda x, mask: (x * ~mask).sum() / (len(x) * length)


@right(masked_sum_over)
def right_sum_over(denominator):
    return lambda x, mask: (x * mask).sum() / denominator


@wrong(masked_sum_over, "This divides by the tokens of the micro-batch: the parts then do not add up to the batch.")
def sum_over_own_tokens(denominator):
    return lambda x, mask: (x * mask).sum() / mask.sum()


@wrong(masked_sum_over, "The division is missing: sum / denominator.")
def sum_over_nothing(denominator):
    return lambda x, mask: (x * mask).sum()


@wrong(masked_sum_over, "The rows are divided by as well: the denominator is all there is.")
def sum_over_rows_too(denominator):
    return lambda x, mask: (x * mask).sum() / (len(x) * denominator)


@wrong(masked_sum_over, "The mask is not used: padding is added up too.")
def sum_over_padding(denominator):
    return lambda x, mask: x.sum() / denominator


@wrong(masked_sum_over, "The mask is upside down: True means that a token counts.")
def sum_of_the_padding(denominator):
    return lambda x, mask: (x * ~mask).sum() / denominator


# The drills


def _table(seed, mask):
    return {"x": numbers(seed, *mask.shape), "mask": mask}


def _reduced(factory, inputs, knobs):
    """A function that returns a reducer: the reducer's result."""
    size, *table = inputs.values()
    reduce = factory(size)
    return None if reduce in (None, ...) else reduce(*table)


def _with(name: str, *sizes: float) -> list[Case]:
    cases = masked_cases(_table)
    return [Case({name: sizes[i % len(sizes)]} | case.inputs, {}) for i, case in enumerate(cases)]


MEAN_HINTS = (
    "Two numbers: what is added up, and by what it is divided. Padding is in neither.",
    "x * mask is 0 in the padding; mask.sum() counts what is left.",
)

DRILLS = [
    Drill(masked_mean, masked_cases(_table), (*MEAN_HINTS, "(x * mask).sum() / mask.sum()."), ["x"], ["mean"]),
    Drill(
        masked_whiten,
        masked_cases(_table)[1:],
        (
            "Mean 0 and standard deviation 1 over the counted entries, 0 elsewhere.",
            "mean = x[mask].mean(); the variance is the mean square of x - mean over the counted entries: divide by n.",
            "(x - mean) * torch.rsqrt(variance + eps), with the padding set to 0 at the end.",
        ),
        outputs=["whitened"],
    ),
    Drill(token_mean, masked_cases(_table), (*MEAN_HINTS, "(x * mask).sum() / mask.sum()."), ["x"], ["mean"]),
    Drill(
        sequence_mean,
        masked_cases(_table),
        (
            "Two means, one after the other. Which comes first?",
            "Row by row over the counted tokens: sum(1) over mask.sum(1). Then the mean over rows.",
            "((x * mask).sum(1) / mask.sum(1)).mean(); a row with nothing counted should be left out.",
        ),
        ["x"],
        ["mean"],
    ),
    Drill(
        fixed_length_mean,
        _with("length", 4, 3, 1),
        (
            "It returns a function of (x, mask): write a def inside, or a lambda.",
            "The divisor does not look at the mask at all.",
            "lambda x, mask: (x * mask).sum() / (len(x) * length).",
        ),
        ["x"],
        ["mean"],
        call=_reduced,
        form="fixed_length_mean(length)(x, mask)",
    ),
    Drill(
        masked_sum_over,
        _with("denominator", 10, 7),
        (
            "It returns a function of (x, mask): write a def inside, or a lambda.",
            "The denominator was counted elsewhere, over the whole batch: do not count anything here.",
            "lambda x, mask: (x * mask).sum() / denominator.",
        ),
        ["x"],
        ["sum"],
        call=_reduced,
        form="masked_sum_over(denominator)(x, mask)",
    ),
]
