"""One uniform number and its place on the cumulative distribution; the nucleus."""

import torch

from minirl.sampling import inverse_cdf, nucleus


def test_inverse_cdf_by_hand():
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.25, 0.0]]).expand(7, -1)
    below_one = 1 - 2**-24
    uniform = torch.tensor([0.0, 0.25, 0.4999, 0.5, 0.7499, 0.75, below_one])
    for total in (1.0, 0.5, 4.0):  # of the number, the place in the sum counts
        assert inverse_cdf(total * probs, uniform).tolist() == [1, 1, 1, 3, 3, 4, 4]


def test_inverse_cdf_never_draws_an_impossible_token():
    torch.manual_seed(0)
    ends = torch.tensor([0.0, 2**-24, 1 - 2**-24])  # the smallest and largest numbers torch.rand gives
    for scale in (1 - 3e-7, 1.0, 1 + 3e-7):  # rounding leaves sums a little off 1
        logits = torch.randn(600, 50).masked_fill(torch.rand(600, 50) < 0.6, -torch.inf)
        logits[:, 0] = -torch.inf
        logits[:, -1] = -torch.inf
        logits[:, 7] = 0.0
        probs = logits.softmax(-1) * scale
        uniform = torch.cat([ends.repeat(100), torch.rand(300)])
        assert (probs.gather(1, inverse_cdf(probs, uniform)[:, None]) > 0).all()


def test_inverse_cdf_survives_a_sum_that_wavers(monkeypatch):
    """A parallel sum may rise where nothing is added: the token drawn there has no probability."""
    wavering = torch.tensor([[0.5, 0.5 + 1e-6, 0.5 + 1e-6, 1.0]])
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda self, dim: wavering)
    assert inverse_cdf(torch.tensor([[0.5, 0.0, 0.0, 0.5]]), torch.tensor([0.5])).item() in (0, 3)


def test_nucleus_by_hand():
    probs = torch.tensor([[0.0625, 0.5, 0.25, 0.1875]])
    for top_p, expected in (
        (0.01, [0, 1, 0, 0]),
        (0.5, [0, 1, 0, 0]),  # holds 0.5 already
        (0.51, [0, 2 / 3, 1 / 3, 0]),
        (0.75, [0, 2 / 3, 1 / 3, 0]),
        (0.76, [0, 8 / 15, 4 / 15, 3 / 15]),
        (0.95, [0.0625, 0.5, 0.25, 0.1875]),
        (1.0, [0.0625, 0.5, 0.25, 0.1875]),
    ):
        torch.testing.assert_close(nucleus(probs, top_p), torch.tensor([expected], dtype=torch.float32))
