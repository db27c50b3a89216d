"""NaN, infinity and numbers beyond all measure: the run stops, says where, and goes back if it was told to."""

import json
import math

import pytest
import torch
from torch import nn

from minirl import guards
from minirl.__main__ import main
from minirl.checkpoint import checkpoints
from minirl.guards import GRADIENT_CEILING, KL_CEILING, NonFiniteError, check_record, setbacks
from minirl.run import Run
from minirl.train.optimizer import adamw, follow_gradient, named, update

NAN, INF = float("nan"), float("inf")
SMALL = {
    "ppo": ["--batch", "8", "--minibatch", "4"],
    "grpo": ["--prompts", "2", "--group-size", "4"],
    "pretrain": ["--batch", "4"],
    "dpo": ["--pairs", "4", "--sampled-pairs", "16"],
}


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def train(out, loop: str, *more: str) -> int:
    start = ["train", loop, "--task", "digit_sum", "--out", str(out), "--threads", "1", "--steps", "6"]
    return main([*start, "--checkpoint-every", "2", *SMALL[loop], *more])


def said(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("minirl:")]
    assert len(lines) == 1
    return lines[0]


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def state_of(model, optimizer) -> list[torch.Tensor]:
    moments = [x for each in optimizer.state_dict()["state"].values() for x in each.values()]
    return [x.clone() for x in [*model.parameters(), *moments]]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_the_first_bad_gradient_is_named_with_its_place(bad):
    model = two_layers()
    optimizer = adamw(model)
    update(optimizer, model(torch.ones(1, 3)).sum(), step=1, lr=0.1, max_grad_norm=1.0)
    before = state_of(model, optimizer)
    optimizer.zero_grad()
    loss = model(torch.ones(1, 3)).sum()
    loss.backward()
    model[1].weight.grad[1, 2] = bad
    model[1].bias.grad[0] = bad
    expected = (
        rf"step 7: the gradient of 1\.weight is {bad} at \(1, 2\), 1 of 8, the first of 2 .*lr = 0\.1\).*Nothing was"
    )
    with pytest.raises(NonFiniteError, match=expected):
        follow_gradient(optimizer, loss.detach(), step=7, lr=0.1, max_grad_norm=1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(model, optimizer), strict=True))


def test_the_part_of_the_loss_that_broke_is_named():
    model = two_layers()
    optimizer, parts = adamw(model), {"policy_loss": torch.tensor(1.0), "value_loss": torch.tensor(INF)}
    with pytest.raises(NonFiniteError, match="step 3: the value_loss is inf"):
        follow_gradient(optimizer, torch.tensor(NAN), step=3, lr=0.1, max_grad_norm=1.0, parts=parts)
    with pytest.raises(NonFiniteError, match="step 3: the loss is nan"):
        follow_gradient(optimizer, torch.tensor(NAN), step=3, lr=0.1, max_grad_norm=1.0)


def test_a_norm_that_overflows_though_every_number_is_finite():
    model = two_layers()
    optimizer = adamw(model)
    loss = sum(p.sum() for p in model.parameters()) * 1e30
    with pytest.raises(NonFiniteError, match="the norm of the gradient is inf"):
        update(optimizer, loss, step=1, lr=0.1, max_grad_norm=1.0)
    assert not optimizer.state_dict()["state"]


@pytest.mark.parametrize(("factor", "stops"), [(0.5, False), (2.0, True)])
def test_a_gradient_beyond_its_ceiling_stops_before_the_update(factor, stops):
    model = nn.Linear(1, 1, bias=False)
    optimizer, before = adamw(model), model.weight.detach().clone()
    loss = model.weight.sum() * GRADIENT_CEILING * factor
    if stops:
        with pytest.raises(NonFiniteError, match=r"step 1: grad_norm is 2e\+08, above 1e\+08"):
            update(optimizer, loss, step=1, lr=0.1, max_grad_norm=1.0)
    else:
        update(optimizer, loss, step=1, lr=0.1, max_grad_norm=1.0)
    assert torch.equal(before, model.weight) == stops


def test_parameters_without_names_go_by_their_numbers():
    model = two_layers()
    frozen = two_layers()
    frozen[0].requires_grad_(False)
    assert [name for name, _ in named(adamw(frozen))] == ["1.weight", "1.bias"]
    plain = torch.optim.AdamW(model.parameters())
    assert [name for name, _ in named(plain)][-1] == "parameter 3 of group 0"


def test_half_precision_gradients_are_judged_too():
    model = two_layers().to(torch.bfloat16)
    loss = sum(p.sum() for p in model.parameters()) * 3e38 * 10
    with pytest.raises(NonFiniteError, match=r"the loss is -?inf"):
        update(adamw(model), loss, step=1, lr=0.1, max_grad_norm=1.0)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"loss": 1.0, "kl": 30.0, "length_mean": 40.0, "grad_norm": 300.0}, ""),
        ({"loss": NAN}, "loss is nan"),
        ({"reward_mean": INF, "reward_std": NAN}, r"reward_mean is inf \(and reward_std\)"),
        ({"kl": KL_CEILING * 39, "length_mean": 40.0}, ""),
        ({"kl": KL_CEILING * 41, "length_mean": 40.0}, r"kl is 820, 20\.5 nats a token"),
        ({"kl": KL_CEILING * 2}, "kl is 40"),
        ({"grad_norm": 2 * GRADIENT_CEILING}, "grad_norm is 2e"),
    ],
)
def test_statistics_are_held_to_what_can_be(tmp_path, record, says):
    run = Run(tmp_path / "out", progress=False, checkpoint_every=1)
    stats = {name: torch.tensor(value) for name, value in record.items()}
    steps = run.steps(run.track(model=nn.Linear(1, 1)), 3)
    assert next(steps) == 1
    if not says:
        run.record(1, stats)
        return
    with pytest.raises(NonFiniteError, match=f"step 1: {says}"):
        run.record(1, stats)
    assert not (tmp_path / "out" / "metrics.jsonl").read_text() and not checkpoints(tmp_path / "out" / "checkpoints")


def test_weights_that_break_at_the_last_step_are_told_of_in_full(tmp_path):
    model = two_layers()
    run = Run(tmp_path / "out", progress=False, checkpoint_every=2)
    with (
        pytest.raises(NonFiniteError, match=r"step 3: after the update the weight .*step_000002") as caught,
        run.telling_where(),
    ):
        for step in run.steps(run.track(model=model), 3):
            if step == 3:
                model[0].weight.data[0, 0] = NAN
            run.record(step, {"loss": torch.tensor(0.0)})
    assert caught.value.step == 3


def test_a_run_without_a_folder_records_what_it_is_given():
    """A notebook that shows how a run breaks."""
    run = Run(progress=False)
    for step in run.steps(run.track(), 1):
        run.record(step, {"loss": torch.tensor(NAN)})
    assert math.isnan(run.records[0]["loss"])


def test_a_weight_that_is_not_finite_gets_no_checkpoint(tmp_path):
    model = two_layers()
    run = Run(tmp_path / "out", progress=False, checkpoint_every=2)
    with pytest.raises(NonFiniteError, match=r"step 4: after the update the weight 1\.bias is inf at 1, 1 of 2"):
        for step in run.steps(run.track(model=model), 6):
            if step == 4:
                model[1].bias.data[1] = INF
            run.record(step, {"loss": torch.tensor(0.0)})
    assert [path.name for path in checkpoints(tmp_path / "out" / "checkpoints")] == ["step_000002"]


# From the command line


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_rule_that_breaks_names_step_scores_and_the_last_checkpoint(tmp_path, capsys, unhooked, value):
    rule, out = tmp_path / "rule.py", tmp_path / "out"
    rule.write_text(
        "calls = []\n"
        "def judge(prompts, responses):\n"
        "    calls.append(1)\n"
        f"    return [float(len(r)) for r in responses[:-1]] + [float('{value}') if len(calls) == 4 else 0.0]\n"
    )
    assert train(out, "ppo", "--reward", f"{rule}:judge") == 2
    line = said(capsys)
    assert f"step 4: scores: wanted finite numbers, got {value} at 7 (1 in all)" in line
    assert f"The last checkpoint, all finite: {out}/checkpoints/step_000002" in line
    assert [json.loads(x)["step"] for x in (out / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert train(out, "ppo", "--reward", f"{rule}:judge", "--resume", "--on-nonfinite", "back") == 2
    assert "step 6: scores" in said(capsys), "no learning rate mends a rule"
    assert not (out / "setbacks.json").exists()


@pytest.mark.parametrize(
    ("loop", "lr", "says"),
    [
        ("ppo", "1e6", "the gradient of policy.embed.weight is nan at (0, 0)"),
        ("pretrain", "1e6", "the loss is nan"),
        ("grpo", "1e30", "wanted finite numbers, got nan"),
    ],
)
def test_a_learning_rate_that_is_too_high_ends_in_one_line(tmp_path, capsys, unhooked, loop, lr, says):
    out = tmp_path / "out"
    assert train(out, loop, "--lr", lr, "--warmup", "1", *(["--kl-coef", "0.1"] if loop == "grpo" else [])) == 2
    line = said(capsys)
    assert says in line and "a learning rate that is too high" in line and "checkpoint" in line
    assert f"python -m minirl doctor {out / 'metrics.jsonl'}" in line and "--resume --on-nonfinite back" in line
    records = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for record in records for value in record.values())


def test_a_model_whose_list_does_not_fit_is_refused(tmp_path, capsys, unhooked):
    assert train(tmp_path / "a", "pretrain", "--keep", "1") == 0
    assert [path.name for path in checkpoints(tmp_path / "a" / "checkpoints")] == ["step_000006"]
    path = tmp_path / "a" / "final" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    for argv in (
        ["generate", str(path.parent)],
        ["compare", str(path.parent), str(path.parent), "--task", "digit_sum"],
        ["train", "grpo", "--task", "digit_sum", "--out", str(tmp_path / "b"), "--model", str(path.parent)],
        ["train", "ppo", "--task", "digit_sum", "--out", str(tmp_path / "b"), "--reward", str(path.parent)],
    ):
        capsys.readouterr()
        assert main(argv) == 2
        assert "model.safetensors: does not have the checksum in final.sha256" in said(capsys)
    assert not (tmp_path / "b" / "metrics.jsonl").exists()
    (tmp_path / "a" / "final.sha256").unlink()
    assert main(["generate", str(path.parent), "--prompt", "12=", "-n", "1", "--max-new-tokens", "2"]) == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--on-nonfinite", "skip"], "--on-nonfinite: wanted stop or back, got 'skip'"),
        (["--keep", "0"], "--keep: wanted a whole number of at least 1, got 0"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path, capsys, unhooked, more, says):
    assert train(tmp_path / "out", "pretrain", *more) == 2
    assert says in said(capsys) and not (tmp_path / "out").exists()


# --on-nonfinite back


@pytest.fixture
def breaks(monkeypatch):
    """Step 5 is not finite while the learning rate is above a bound."""

    def plant(bound: float, at: int = 5):
        check = guards.check_record

        def planted(step, record):
            if step == at and record["lr"] > bound:
                raise NonFiniteError(f"step {step}: the loss is nan")
            check(step, record)

        monkeypatch.setattr("minirl.run.check_record", planted)

    return plant


def metrics(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_back_goes_on_from_the_last_checkpoint_with_half_the_rate(tmp_path, capsys, breaks, unhooked):
    breaks(0.3)
    out = tmp_path / "out"
    flags = ["--lr", "1.0", "--warmup", "1", "--on-nonfinite", "back"]
    assert train(out, "dpo", *flags) == 0
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("minirl:")]
    assert len(shown) == 2 and all("Going back to step 4 with half the learning rate" in line for line in shown)
    assert [(s["step"], s["back_to"]) for s in setbacks(out)] == [(5, 4), (5, 4)]
    assert [record["lr"] for record in metrics(out)] == [1.0] * 4 + [0.25] * 2
    assert [record.get("setbacks") for record in metrics(out)] == [None] * 4 + [2.0] * 2
    assert json.loads((out / "config.json").read_text())["lr"] == 1.0

    # stopped at each of these points, and resumed, it is the same run
    other = tmp_path / "other"
    assert train(other, "dpo", *flags[:-1], "stop") == 2
    assert "step 5: the loss is nan. The last checkpoint, all finite" in said(capsys) and not setbacks(other)
    assert train(other, "dpo", *flags, "--resume") == 0
    for name in ("metrics.jsonl", "final/model.safetensors", "setbacks.json"):
        mine, its = ((folder / name).read_bytes() for folder in (other, out))
        assert mine.replace(str(other).encode(), b"") == its.replace(str(out).encode(), b"")


def test_back_stays_exact_when_a_checkpoint_after_it_is_damaged(tmp_path, breaks, unhooked):
    """The checkpoint it went back to, and all later ones, are gone: what happened there happens again."""
    breaks(0.6)
    out, flags = tmp_path / "out", ["--lr", "1.0", "--warmup", "1", "--on-nonfinite", "back"]
    assert train(out, "dpo", *flags) == 0
    whole = (out / "metrics.jsonl").read_bytes(), (out / "final/model.safetensors").read_bytes()
    for name in ("step_000004", "step_000006"):
        (out / "checkpoints" / name / "state.json").write_text("")
    with pytest.warns(UserWarning, match="damaged"):
        assert train(out, "dpo", *flags, "--resume") == 0
    assert whole == ((out / "metrics.jsonl").read_bytes(), (out / "final/model.safetensors").read_bytes())
    assert len(setbacks(out)) == 1


def test_back_before_the_first_checkpoint_begins_again(tmp_path, breaks, unhooked):
    breaks(0.6, at=1)
    out = tmp_path / "out"
    assert (
        train(out, "pretrain", "--lr", "1.0", "--warmup", "1", "--on-nonfinite", "back", "--max-grad-norm", "1e-9") == 0
    )
    assert [record["setbacks"] for record in metrics(out)] == [1.0] * 6 and metrics(out)[0]["lr"] == 0.5


def test_back_gives_up_after_three_times(tmp_path, capsys, breaks, unhooked):
    breaks(0.0)
    out = tmp_path / "out"
    assert train(out, "dpo", "--lr", "0.01", "--warmup", "1", "--on-nonfinite", "back") == 2
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("minirl:")]
    assert len(shown) == 4 and shown[-1].endswith(
        "It went back 3 times, with half the learning rate each, and broke again."
    )
    assert len(setbacks(out)) == 3


@pytest.mark.parametrize("text", ["{", "3", "[{}]", '[{"step": "x"}]', "[null]"])
def test_damaged_setbacks_are_named(tmp_path, text):
    (tmp_path / "setbacks.json").write_text(text)
    with pytest.raises(ValueError, match=r"setbacks\.json: not a list of setbacks .*learning rate depends on it"):
        setbacks(tmp_path)


def test_the_guards_cost_no_bits():
    """The gradient that was checked is the one that is followed: as torch's own clip and step leave it."""
    ours, theirs = two_layers(), two_layers()
    mine, plain = (
        adamw(ours),
        torch.optim.AdamW(theirs.parameters(), lr=0.05, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
    )
    for step in range(1, 4):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        stats = update(mine, ours(x).pow(2).sum(), step=step, lr=0.05, max_grad_norm=0.7)
        plain.zero_grad()
        theirs(x).pow(2).sum().backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.7)
        plain.step()
        assert torch.equal(stats["grad_norm"], norm)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    check_record(3, {"step": 3.0})
