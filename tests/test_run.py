import json

import pytest
import torch

from minirl.run import Run


class Counter:
    """The smallest loop state there is: a number."""

    def __init__(self):
        self.total = 0


def loop(run: Run, steps: int, *, die_at: int | None = None) -> Counter:
    counter = Counter()
    done = run.track(counter=counter)
    for step in run.steps(done, steps):
        if step == die_at:
            raise KeyboardInterrupt
        counter.total += step
        run.record(step, {"loss": torch.tensor(float(counter.total))})
    return counter


def make(tmp_path, **changes) -> Run:
    return Run(tmp_path / "out", **({"config": {"lr": 0.1}, "checkpoint_every": 2, "progress": False} | changes))


def lines(tmp_path, name="metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "out" / name).read_text().splitlines()]


def test_one_line_a_step_and_step_first(tmp_path):
    loop(make(tmp_path), 3)
    assert [next(iter(line)) for line in lines(tmp_path)] == ["step"] * 3
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 3.0, 6.0]
    assert [line["step"] for line in lines(tmp_path, "timings.jsonl")] == [1, 2, 3]
    assert not any("second" in key or "time" in key for line in lines(tmp_path) for key in line)


def test_checkpoints_come_every_n_steps_and_at_the_end(tmp_path):
    loop(make(tmp_path, keep=10), 5)
    names = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert names == ["step_000002", "step_000004", "step_000005"]


def test_only_the_last_checkpoints_are_kept(tmp_path):
    loop(make(tmp_path, keep=2), 9)
    names = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert names == ["step_000008", "step_000009"]


def test_resume_cuts_the_metrics_back_and_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        loop(make(tmp_path), 6, die_at=4)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]  # the checkpoint is of step 2
    run = make(tmp_path, resume=True)
    counter = loop(run, 6)
    assert counter.total == 21
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 3.0, 6.0, 10.0, 15.0, 21.0]
    assert [record["step"] for record in run.records] == [1, 2, 3, 4, 5, 6]


def test_half_a_line_of_metrics_is_cut_off(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        loop(make(tmp_path), 6, die_at=3)
    with open(tmp_path / "out" / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    loop(make(tmp_path, resume=True), 6)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    loop(make(tmp_path), 4)
    before = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    assert loop(make(tmp_path, resume=True), 4).total == 10
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == before


def test_resume_with_nothing_there_starts_afresh(tmp_path):
    assert loop(make(tmp_path, resume=True), 3).total == 6


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    loop(make(tmp_path), 2)
    with pytest.raises(ValueError, match="--resume"):
        make(tmp_path)
    assert len(lines(tmp_path)) == 2


def test_a_start_that_failed_before_its_first_step_is_forgotten(tmp_path):
    make(tmp_path, config={"reward": "tpyo.py"})
    assert loop(make(tmp_path, config={"reward": "typo.py"}), 2).total == 3
    assert json.loads((tmp_path / "out" / "config.json").read_text())["reward"] == "typo.py"


def test_resume_with_another_setting_names_it(tmp_path):
    loop(make(tmp_path), 2)
    with pytest.raises(ValueError, match=r"lr = 0\.1, not 0\.2"):
        make(tmp_path, resume=True, config={"lr": 0.2})


def test_a_stopped_run_stays_stopped(tmp_path):
    run = make(tmp_path)
    counter = Counter()
    for step in run.steps(run.track(counter=counter), 9):
        counter.total += step
        run.record(step, {"loss": torch.tensor(0.0)})
        if step == 3:
            run.stop("enough")
    assert counter.total == 6
    assert loop(make(tmp_path, resume=True), 9).total == 6


def test_without_a_folder_records_are_only_collected():
    run = Run(progress=False)
    loop(run, 2)
    assert run.records == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 3.0}]
