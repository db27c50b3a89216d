"""check() itself: it knows the right versions, names the wrong ones, and shows a counterexample for the rest."""

import ast
import time
from pathlib import Path

import pytest
import torch
from batches import equal

import minirl.drills
from minirl import advantages, kl, logprobs, masking, rewards
from minirl.drills import BANK, check, drill, hint, names
from minirl.drills import solutions as plain
from minirl.drills.answers import answer, first_difference
from minirl.drills.desk import DRILLS
from minirl.drills.judge import mutants_of
from minirl.losses import policy, preference
from minirl.masking import sequence_mean, token_mean

every = pytest.mark.parametrize("name", names())
MUTANTS = [(name, mutant) for name in names() for mutant in mutants_of(DRILLS[name])]


# Right versions


@every
def test_the_library_passes_without_a_remark(name):
    result = check(name, DRILLS[name].of)
    assert (result.status, result.mistake) == ("ok", None)
    assert "Remark" not in result.message


@every
def test_a_plain_right_version_passes(name):
    result = check(name, getattr(plain, name))
    assert (result.status, result.mistake) == ("ok", None), result.message


def test_there_is_a_drill_for_every_function_of_the_contracts():
    rooms = [kl, logprobs, masking, rewards, advantages, policy, preference]
    taught = [one.of for one in DRILLS.values()]
    contracts = {name for room in rooms for name, x in vars(room).items() if any(x is of for of in taught)}
    assert len(contracts) >= 38 and contracts < set(names())
    assert len(names()) == 51 and names() == sorted(names())
    assert {mutant.of for mutant in BANK} == {DRILLS[name].of for name in names()}


def test_optional_knobs_may_be_left_out():
    def ppo(logprobs, old_logprobs, advantages, mask, clip_eps):
        return plain.ppo_clip_loss(logprobs, old_logprobs, advantages, mask, clip_eps)

    assert check("ppo_clip_loss", ppo).status == "ok"
    assert check("gae", lambda r, v, m, gamma, lam: plain.gae(r, v, m, gamma, lam)).status == "ok"
    assert check("dpo_loss", lambda c, r, rc, rr, beta: plain.dpo_loss(c, r, rc, rr, beta)).status == "ok"
    assert check("bradley_terry_loss", lambda c, r: plain.bradley_terry_loss(c, r)).status == "ok"
    assert check("group_relative_advantages", lambda r, g: plain.group_relative_advantages(r, g, 1e-8)).status == "ok"


def test_a_bare_scalar_and_a_pair_with_statistics_are_both_accepted():
    for wrapped in (lambda loss: loss, lambda loss: (loss, {}), lambda loss: (loss, {"anything": 1})):
        result = check("reinforce_loss", lambda *tensors, wrapped=wrapped: wrapped(plain.reinforce_loss(*tensors)))
        assert result.status == "ok"


def test_a_version_in_float32_passes():
    def rounded(logprobs, advantages, mask):
        return plain.reinforce_loss(logprobs.float(), advantages.float(), mask)

    def single_inside(scores, kl, mask, kl_coef):
        rewards = torch.zeros(kl.shape)  # float32, into which float64 cannot be scattered
        rewards.scatter_add_(1, mask.sum(1, keepdim=True) - 1, scores.unsqueeze(1))
        return rewards - kl_coef * kl * mask

    assert check("reinforce_loss", rounded).status == "ok"
    result = check("kl_shaped_rewards", single_inside)
    assert result.status == "ok" and "float32 only" in result.message


def test_data_may_be_computed_without_gradient():
    assert check("gae", torch.no_grad()(plain.gae)).status == "ok"
    assert check("group_relative_advantages", torch.no_grad()(plain.group_relative_advantages)).status == "ok"


# Wrong versions


@pytest.mark.parametrize("name, mutant", MUTANTS, ids=[f"{name}-{mutant.name}" for name, mutant in MUTANTS])
def test_every_mistake_is_named(name, mutant):
    result = check(name, mutant.function)
    assert (result.status, result.mistake) == ("mistake", mutant.name)
    assert mutant.sentence in result.message and result.message.startswith(f"{name}: ")


@every
def test_no_two_mistakes_are_the_same_function(name):
    one = DRILLS[name]
    versions = {mutant.name: mutant.function for mutant in mutants_of(one)} | {"right": one.of}
    answers = {version: [answer(one, function, case) for case in one.cases] for version, function in versions.items()}
    pairs = [(a, b) for a in answers for b in answers if a < b]
    assert [(a, b) for a, b in pairs if first_difference(one, answers[a], answers[b]) is None] == []


def test_mutants_are_named_once_and_explained():
    assert len({(mutant.of, mutant.name) for mutant in BANK}) == len(BANK)
    for mutant in BANK:
        assert mutant.name.isidentifier() and mutant.sentence.endswith((".", "?")), mutant.name
        assert 15 < len(mutant.sentence) < 200, mutant.name
        assert mutant.seen is None or len(mutant.seen) > 2


def test_a_loss_without_gradient_is_a_mistake_and_one_through_a_detached_half_is_wrong():
    result = check("dpo_loss", torch.no_grad()(plain.dpo_loss))
    assert (result.status, result.mistake) == ("mistake", "no_gradient")
    assert "chosen and rejected" in result.message
    result = check("dpo_loss", lambda c, *rest, beta: plain.dpo_loss(c.detach(), *rest, beta))
    assert result.status == "wrong" and "gradient" in result.message and "chosen" in result.message


def test_a_gradient_into_what_has_to_be_detached_is_a_mistake():
    def kto(logprobs, ref_logprobs, desirable, kl, beta):
        h, z = logprobs - ref_logprobs, kl.clamp(min=0)
        return torch.sigmoid(-beta * torch.where(desirable, h - z, z - h)).mean()

    assert check("kto_loss", kto).mistake == "z_not_detached"


# Neither: the counterexample


def test_a_wrong_version_is_shown_the_smallest_batch_to_redo_by_hand():
    result = check("kl_k1", lambda logprobs, ref_logprobs: 3 * (logprobs - ref_logprobs))
    assert (result.status, result.mistake) == ("wrong", None)
    case = DRILLS["kl_k1"].cases[0]
    logp, ref = case.inputs["logprobs"].item(), case.inputs["ref_logprobs"].item()
    assert f"logprobs = [[{logp:g}]]" in result.message and f"ref_logprobs = [[{ref:g}]]" in result.message
    assert f"expected result = [[{round(logp - ref, 3):g}]]" in result.message
    assert f"got result = [[{round(3 * (logp - ref), 3):g}]]" in result.message


def test_the_counterexample_is_the_first_batch_that_differs():
    # right for one token, wrong as soon as something is ahead
    def bad(rewards, mask, gamma):
        return plain.discounted_returns(rewards, mask, gamma**2)

    message = check("discounted_returns", bad).message
    rewards = DRILLS["discounted_returns"].cases[1].inputs["rewards"]
    assert rewards.shape == (1, 2)
    assert f"rewards = [[{', '.join(f'{x:g}' for x in rewards[0].tolist())}]]" in message
    assert "mask = [[True, True]]" in message and "gamma = 0.5" in message
    assert len(message) < 600


def test_numbers_that_differ_late_are_shown_with_more_digits():
    message = check(
        "value_loss", lambda values, returns, mask: 1.0001 * plain.value_loss(values, returns, mask)
    ).message
    expected, got = (line.split(" = ")[1] for line in message.splitlines() if "loss = " in line)
    assert expected != got and abs(float(expected) * 1.0001 - float(got)) < 1e-6


def test_a_wrong_shape_or_number_of_results_is_said():
    result = check("token_mean", lambda x, mask: plain.token_mean(x, mask).view(1))
    assert result.status == "wrong" and "expected the shape (), got (1,)" in result.message
    result = check("gae", lambda r, v, m, gamma, lam: plain.gae(r, v, m, gamma, lam)[0])
    assert result.status == "wrong" and "expected 2 results, advantages and returns; got 1" in result.message


def test_a_gradient_counterexample_says_of_what():
    def half(x, mask):
        mean = plain.token_mean(x, mask)
        return mean / 2 + (mean / 2).detach()

    result = check("token_mean", half)
    assert result.status == "wrong"
    assert "The mean agrees; the gradient of mean with respect to x does not" in result.message
    assert "expected [[1]]" in result.message and "got [[0.5]]" in result.message


# Nothing yet, and what raises


def unwritten(*args, **knobs):
    raise NotImplementedError


class Unwritten:
    def __init__(self, kl_coef, target, horizon):
        pass

    def update(self, kl, n_steps):
        pass


@pytest.mark.parametrize("name", ["gae", "dpo_loss", "fixed_length_mean", "AdaptiveKL", "kl_k3"])
def test_nothing_written_is_a_todo(name):
    for nothing in (None, ..., unwritten, lambda *args, **knobs: None, lambda *args, **knobs: ...):
        result = check(name, nothing) if name != "AdaptiveKL" or nothing is None else check(name, Unwritten)
        assert (result.status, result.mistake) == ("todo", None)
    assert check("fixed_length_mean", lambda length: lambda x, mask: None).status == "todo"


def test_an_error_shows_its_type_its_text_and_the_shapes_but_no_traceback():
    def bad(logprobs, advantages, mask):
        raise IndexError("seven is too many")

    result = check("reinforce_loss", bad)
    assert (result.status, result.mistake) == ("error", None)
    assert "IndexError: seven is too many" in result.message
    assert "reinforce_loss(logprobs, advantages, mask)" in result.message
    assert "logprobs: (1, 1) float64" in result.message and "mask: (1, 1) bool" in result.message
    assert "Traceback" not in result.message and "File" not in result.message


def test_a_wrong_signature_a_wrong_type_and_no_function_are_errors():
    assert "TypeError" in check("kl_k1", lambda logprobs: logprobs).message
    assert "wanted a tensor as loss, got str" in check("value_loss", lambda *args: "0.5").message
    assert check("kl_k1", 3).status == "error"
    assert check("AdaptiveKL", lambda *args, **knobs: 0.2).status == "error"


# Manners


def test_inputs_changed_in_place_confuse_nobody():
    def careless_ppo(logprobs, old_logprobs, advantages, mask, clip_eps):
        advantages *= mask
        logprobs -= old_logprobs
        ratio = logprobs.exp_()
        return -torch.min(ratio * advantages, ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages)[mask].mean()

    def careless_gae(rewards, values, mask, gamma, lam):
        values[~mask] = 0
        result = plain.gae(rewards, values, mask, gamma, lam)
        for x in (rewards, values, mask):
            x.zero_()
        return result

    for _ in range(2):  # nothing is spoiled for the next call
        for name, careless in [("ppo_clip_loss", careless_ppo), ("gae", careless_gae)]:
            result = check(name, careless)
            assert result.status == "ok" and "in place" in result.message
    assert check("ppo_clip_loss", plain.ppo_clip_loss).status == "ok"


def test_the_generator_and_the_gradient_mode_are_left_alone():
    def restless(logprobs, ref_logprobs):
        torch.manual_seed(1)
        torch.rand(3)
        difference = logprobs - ref_logprobs
        torch.set_grad_enabled(False)
        return difference

    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert check("kl_k1", restless).status == "ok"
    assert check("kl_k1", lambda *policies: restless(*policies).detach()).mistake == "no_gradient"
    check("gae", plain.gae)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    for without in (torch.no_grad, torch.inference_mode):
        with without():
            assert check("dpo_loss", plain.dpo_loss).status == "ok"
            assert check("dpo_loss", torch.no_grad()(plain.dpo_loss)).mistake == "no_gradient"
            assert not torch.is_grad_enabled()


def test_a_check_is_quick():
    for name in ("gae", "grpo_loss", "ppo_clip_loss", "kto_loss"):
        start = time.process_time()
        check(name, lambda *args, **knobs: torch.zeros(()))
        assert time.process_time() - start < 1


def test_every_case_keeps_within_the_base_contract():
    for case in [case for one in DRILLS.values() for case in one.cases]:
        tensors = {name: x for name, x in case.inputs.items() if isinstance(x, torch.Tensor)}
        floats = {name: x for name, x in tensors.items() if x.is_floating_point()}
        assert all(x.isfinite().all() and x.dtype == torch.float64 for x in floats.values())
        for name in floats.keys() & {"old_logprobs", "ref_logprobs"}:
            assert (floats["logprobs"] - floats[name]).abs().max() < 3
        if case.mask is not None:
            starts = (case.mask.int().diff(dim=1) > 0).sum(1) + case.mask[:, 0].int()
            assert (starts == 1).all()  # no empty row, no gap: each row counts one stretch
    masked = [one for one in DRILLS.values() if one.cases[0].mask is not None]
    assert len(masked) > 15 and all(any(not case.mask.all() for case in one.cases) for one in masked)


# Remarks


def test_what_breaks_beyond_the_base_contract_is_a_remark():
    def naive(x, mask):
        return (x * mask).sum() / mask.sum()

    message = check("token_mean", naive).message
    assert "NaN in the padding" in message and "bfloat16" in message and "all-False mask" in message
    assert "gap" not in message

    def right_padded(rewards, mask, gamma):
        returns, ahead = torch.zeros_like(rewards), 0.0
        for t in reversed(range(rewards.shape[1])):
            ahead = rewards[:, t] * mask[:, t] + gamma * ahead
            returns[:, t] = ahead
        return returns * mask

    assert "gap inside the mask" in check("discounted_returns", right_padded).message
    assert "log-ratios of 1000" in check("kl_k3", plain.kl_k3).message
    assert "-inf" in check("entropy", plain.entropy).message
    overflowing = check("softmax", lambda logits: logits.exp() / logits.exp().sum(-1, keepdim=True)).message
    assert "logits of 1000 overflow" in overflowing
    assert (
        "1000" not in check("token_logprobs", lambda x, t: plain.token_logprobs(x.float(), t)).message
    )  # rounded, no more
    assert "advantages and old_logprobs would get a gradient" in check("ppo_clip_loss", plain.ppo_clip_loss).message


# The desk


@every
def test_a_drill_says_what_to_write_without_saying_how(name):
    text = drill(name)
    of = DRILLS[name].of
    assert text.startswith(("def ", "class ")) and name in text and of.__doc__.strip().splitlines()[0] in text
    for line in ("return ", "check_", "blank("):
        assert not any(written.strip().startswith(line) for written in text.splitlines()), line
    assert "Judged as" in text


def test_a_drill_shows_shapes_and_formula():
    assert 'rewards: Float[Tensor, "B T"]' in drill("gae") and "A_t     = delta_t + gamma * lam * A_{t+1}" in drill(
        "gae"
    )
    assert "def update(self, kl: float, n_steps: int) -> float:" in drill("AdaptiveKL")
    assert "fixed_length_mean(length)(x, mask)" in drill("fixed_length_mean")


@every
def test_hints_rise_and_end(name):
    hints = [hint(name, n) for n in (1, 2, 3)]
    assert len(set(hints)) == 3 and all(len(text) > 10 for text in hints)
    for n in (0, 4, -1):
        with pytest.raises(ValueError, match=r"^n: wanted a hint in 1\.\.3 for"):
            hint(name, n)


@pytest.mark.parametrize("ask", [drill, lambda name: hint(name, 1), lambda name: check(name, None)])
def test_an_unknown_name_lists_its_neighbours(ask):
    with pytest.raises(ValueError, match=r"^name: wanted .* got 'ppo_loss'; near it: .*ppo_clip_loss"):
        ask("ppo_loss")


# The room


def test_the_drills_stand_on_the_floors_below_and_nothing_stands_on_them():
    package = Path(minirl.drills.__file__).parent
    below = {
        "types",
        "files",
        "disk",
        "masking",
        "logprobs",
        "kl",
        "advantages",
        "rewards",
        "losses",
        "model",
        "generate",
        "checkpoint",
        "drills",
    }
    for path in package.parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minirl."):
                room = node.module.split(".")[1]
                if path.parent == package:
                    assert room in below, path.name
                elif path.name != "__main__.py":
                    assert room != "drills" or package in path.parents, path.name


def test_reducers_of_the_library_are_what_the_plain_versions_say():
    """The plain reducers stand in as defaults of the plain losses, so they had better be right in gaps and empty rows."""
    x = torch.tensor([[1.0, 9.0, 3.0], [5.0, 5.0, 5.0], [2.0, 4.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, False]])
    assert equal(plain.token_mean(x, mask), token_mean(x, mask))
    assert equal(plain.sequence_mean(x, mask), sequence_mean(x, mask))
