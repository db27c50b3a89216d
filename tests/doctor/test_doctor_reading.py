"""Files and names: what is read, what is passed over, what is refused, and what the command prints."""

import argparse
import json

import pytest
from logs import TRL_GRPO, one_update, ppo, records

from minirl.doctor import command, diagnose, read_metrics
from minirl.doctor.log import Curve, Log
from minirl.doctor.names import OURS, is_training_row, ours
from minirl.types import STATS

SICK = records(ppo() | {"kl": [-1.0 - i for i in range(40)]})


def stored(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def printed(capsys, path) -> str:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args([str(path)])) == 0
    return " ".join(capsys.readouterr().out.split())


# Names


def test_our_names_stay():
    assert not set(OURS) & set(STATS) - {"kl"}
    row = dict.fromkeys(STATS, 0.5)
    assert ours(row) == row


def test_trl_names_become_ours():
    row = {"objective/kl": 1, "policy/clipfrac_avg": 2, "val/ratio": 3, "loss/value_avg": 4, "objective/scores": 5}
    assert ours(row) == {"kl": 1, "clip_fraction": 2, "ratio_mean": 3, "value_loss": 4, "reward_mean": 5}
    classic = {"ppo/val/var_explained": 1, "ppo/policy/clipfrac": 2, "ppo/mean_scores": 3, "objective/entropy": 4}
    assert ours(classic) == {"explained_variance": 1, "clip_fraction": 2, "reward_mean": 3, "entropy": 4}
    pairs = {"rewards/accuracies": 1, "rewards/margins": 2, "logps/chosen": 3, "rewards/chosen": 4}
    assert ours(pairs) == {"accuracy": 1, "margin": 2, "chosen_logprobs": 3, "chosen_rewards": 4}


def test_of_two_names_for_one_thing_the_first_wins():
    assert ours({"objective/rlhf_reward": 1.0, "objective/scores": 2.0})["reward_mean"] == 2.0
    assert ours({"objective/entropy": 1.0, "policy/entropy_avg": 2.0})["entropy"] == 2.0
    assert ours({"clip_ratio": 1.0, "clip_ratio/region_mean": 2.0})["clip_fraction"] == 2.0
    assert ours({"objective/scores": 1.0, "reward_mean": 2.0})["reward_mean"] == 2.0


def test_episodes_a_second_and_the_like_are_no_metric_of_ours():
    assert not set(ours({"eps": 12, "episode": 512, "num_tokens": 3e6, "epoch": 0.1})) & set(STATS)


def test_the_kl_of_a_mean_over_tokens_becomes_that_of_a_response():
    row = ours({"kl": 0.05, "completions/mean_length": 200.0, "completions/clipped_ratio": 0.25})
    assert row == {"kl": 10.0, "length_mean": 200.0, "finished": 0.75}
    assert ours({"kl": 0.05, "length_mean": 200.0})["kl"] == 0.05  # ours is one already


def test_a_prefix_of_a_tracker_is_taken_off():
    assert ours({"train/reward": 1.0, "train/global_step": 5}) == {"reward_mean": 1.0, "global_step": 5}


def test_evaluations_and_summaries_are_no_training_rows():
    assert is_training_row({"loss": 0.1, "step": 1})
    assert not is_training_row({"eval_loss": 0.1, "eval_rewards/accuracies": 0.5, "step": 1, "epoch": 0.1})
    assert not is_training_row({"train_runtime": 12.0, "train_loss": 0.1, "step": 40, "total_flos": 0})
    assert not is_training_row({"step": 1, "epoch": 0.1})
    assert is_training_row({"eval_win_rate": 0.5, "step": 1})  # there is no other place for it


def test_win_rates_of_evaluations_meet_the_rewards_of_training():
    log = []
    for i, row in enumerate(records(one_update(), TRL_GRPO)):
        log += [row, {"eval_win_rate": 0.7 - 0.01 * i, "eval_loss": 0.1, "step": i + 1}]
    assert [d.name for d in diagnose(log)] == ["proxy_up_win_rate_down"]


def test_steps_come_from_the_record_or_from_its_place():
    assert Log([{"global_step": 7, "kl": 1}, {"kl": 2}])["kl"] == Curve((7, 2), (1.0, 2.0))


# Curves


def test_a_direction_needs_to_rise_above_the_noise():
    assert Curve(tuple(range(10)), tuple(map(float, range(10)))).direction == "rose"
    assert Curve(tuple(range(10)), tuple(-x for x in map(float, range(10)))).direction == "fell"
    assert Curve(tuple(range(10)), (1.0, 2.0) * 5).direction == ""
    assert Curve(tuple(range(3)), (1.0, 2.0, 3.0)).direction == ""  # too few
    assert Curve().direction == ""


def test_means_over_a_window():
    curve = Curve(tuple(range(10)), tuple(float(i * i) for i in range(10)))
    assert curve.window == 2 and curve.early == 0.5 and curve.late == (64 + 81) / 2
    assert curve.smooth.values == pytest.approx([(i * i + (i + 1) ** 2) / 2 for i in range(9)])
    assert curve.smooth.steps == tuple(range(1, 10))
    assert curve.second_half.values == (25, 36, 49, 64, 81)


# Files


def test_a_file_of_lines_and_the_folder_of_a_run_say_the_same(tmp_path):
    path = stored(tmp_path / "metrics.jsonl", SICK)
    assert read_metrics(path) == read_metrics(tmp_path) == SICK


def test_a_trainer_state_is_read_alone_and_in_its_folder(tmp_path):
    rows = [*records(one_update(), TRL_GRPO), {"eval_loss": 1.0, "step": 40}, {"train_runtime": 3.0, "step": 40}]
    folder = tmp_path / "checkpoint-40"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"best_metric": None, "log_history": rows}, indent=2))
    assert read_metrics(folder / "trainer_state.json") == read_metrics(folder) == read_metrics(tmp_path) == rows
    assert diagnose(read_metrics(folder)) == []


def test_a_list_of_records_is_read(tmp_path):
    (tmp_path / "log.json").write_text(json.dumps(SICK))
    assert read_metrics(tmp_path / "log.json") == SICK


@pytest.mark.parametrize(
    ("config", "updates"),
    [
        ({"batch": 64, "minibatch": 32, "epochs": 2}, 4),
        ({"prompts": 16, "group_size": 16, "minibatch": 256, "epochs": 1}, 1),
        ({"prompts": 3, "group_size": 4, "minibatch": 5, "epochs": 1}, 3),
        ({"pairs": 64}, None),
        ("nonsense", None),
    ],
)
def test_the_config_of_a_run_tells_how_many_updates_a_batch_gets(tmp_path, config, updates):
    stored(tmp_path / "metrics.jsonl", SICK)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_metrics(tmp_path)[0].get("updates") == updates
    assert read_metrics(tmp_path)[1:] == SICK[1:]


def test_a_last_line_cut_short_is_left_out(tmp_path):
    path = stored(tmp_path / "metrics.jsonl", SICK)
    path.write_text(path.read_text()[:-30])
    assert read_metrics(path) == SICK[:-1]


def test_nan_and_infinity_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": "Infinity"}\n')
    (found,) = diagnose(read_metrics(path))
    assert found.name == "non_finite" and "step 1" in found.evidence


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: read to its end and found no metric"),
        ("\n\n", "line 2: read to its end and found no metric"),
        ('{"step": 1}\n{"step": 2, "note": "hello"}\n', "line 2: read to its end"),
        ('{"eval_loss": 1.0}\n', "line 1: read to its end"),
        ("step,loss\n1,0.5\n", "line 1: wanted one JSON object a line"),
        ('{"loss": 1}\n{"loss": \n{"loss": 2}\n', "line 2: wanted one JSON object a line"),
        ('{"loss": 1}\n[1]\n{"loss": 2}\n', "line 2: wanted one JSON object a line (got [1])"),
        ("17", "line 1: wanted one JSON object a line (got 17)"),
    ],
)
def test_a_useless_file_is_refused_by_name_and_line(tmp_path, text, said):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_metrics(path)
    assert str(path) in str(error.value) and said in str(error.value)


def test_a_missing_file_and_an_empty_folder_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*nowhere\.jsonl"):
        read_metrics(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match=r"no metrics\.jsonl and no trainer_state\.json"):
        read_metrics(tmp_path)


# The command


def test_the_command_names_sees_and_advises(tmp_path, capsys):
    text = printed(capsys, stored(tmp_path / "metrics.jsonl", SICK))
    assert "1. negative_kl: almost certain (97%)" in text
    assert "seen: kl is negative in 100% of the records" in text and "Notebook 07." in text
    assert "could not be looked for: proxy_up_win_rate_down" in text and "gold_mean or win_rate" in text


def test_the_command_says_so_when_nothing_is_found_and_what_it_looked_for(tmp_path, capsys):
    text = printed(capsys, stored(tmp_path / "metrics.jsonl", records(one_update())))
    assert "Nothing wrong was found" in text
    looked, missing = text.split("could not be looked for:")
    assert "looked for: non_finite" in looked and "dead_groups" in looked.split("looked for:")[1]
    assert "negative_explained_variance" in missing and "explained_variance" in missing.split("for want of:")[1]


def test_the_command_says_when_it_is_too_early(tmp_path, capsys):
    text = printed(capsys, stored(tmp_path / "metrics.jsonl", records(one_update())[:3]))
    assert "zero_loss_at_start" in text and "so few records" in text
    assert "so few records" not in printed(capsys, stored(tmp_path / "metrics.jsonl", records(one_update())))
