import json
import random

import pytest
import torch
from torch import nn

from minirl.checkpoint import checkpoints, restore, write_checkpoint
from minirl.kl import AdaptiveKL


def tracked(seed: int) -> dict:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(seed)
    return {
        "model": model,
        "optimizer": optimizer,
        "generator": generator,
        "adaptive": AdaptiveKL(0.1 * (seed + 1), target=1.0, horizon=100),
    }


def train(objects: dict, steps: int) -> None:
    """A few steps whose result depends on everything that is tracked, and on the global random streams."""
    for _ in range(steps):
        x = torch.randn(5, 3, generator=objects["generator"]) + torch.rand(1) + random.random()
        loss = objects["model"](x).pow(2).mean() * objects["adaptive"].kl_coef
        objects["optimizer"].zero_grad()
        loss.backward()
        objects["optimizer"].step()
        objects["adaptive"].update(float(loss.detach()) + 0.5, 10)


def weights(objects: dict) -> list[torch.Tensor]:
    return [p.detach().clone() for p in objects["model"].parameters()]


def test_restored_run_ends_with_the_same_bits(tmp_path):
    objects = tracked(0)
    train(objects, 3)
    write_checkpoint(tmp_path, 3, objects)
    train(objects, 4)

    other = tracked(1)
    random.seed(99)
    assert restore(tmp_path, other) == 3
    train(other, 4)
    assert all(torch.equal(a, b) for a, b in zip(weights(objects), weights(other), strict=True))
    assert objects["adaptive"].kl_coef == other["adaptive"].kl_coef


@pytest.mark.parametrize("what", ["model", "optimizer", "generator", "adaptive", "rng"])
def test_every_tracked_piece_matters(tmp_path, what):
    """Leaving any one piece out of the restored state changes the final weights: the test above can fail."""
    objects = tracked(0)
    train(objects, 3)
    write_checkpoint(tmp_path, 3, objects)
    train(objects, 4)

    other = tracked(1)
    restored = {name: item for name, item in other.items() if name != what}
    restore(tmp_path, restored)
    if what == "rng":
        torch.manual_seed(123)
    train(other, 4)
    assert not all(torch.equal(a, b) for a, b in zip(weights(objects), weights(other), strict=True))


def test_no_checkpoint_is_step_zero(tmp_path):
    assert restore(tmp_path / "none", tracked(0)) == 0


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, file, damage):
    objects = tracked(0)
    train(objects, 1)
    write_checkpoint(tmp_path, 1, objects)
    before = weights(objects)
    train(objects, 1)
    path = write_checkpoint(tmp_path, 2, objects) / file
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        if damage == "flip":
            data[-20] ^= 1
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    other = tracked(1)
    with pytest.warns(UserWarning, match="step_000002: damaged"):
        assert restore(tmp_path, other) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, weights(other), strict=True))
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000001"]


def test_all_damaged_is_an_error(tmp_path):
    path = write_checkpoint(tmp_path, 1, tracked(0))
    (path / "state.json").write_text("{")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="every checkpoint is damaged"):
        restore(tmp_path, tracked(0))


def test_checkpoint_under_another_name_is_refused(tmp_path):
    write_checkpoint(tmp_path, 1, tracked(0)).rename(tmp_path / "step_000007")
    with pytest.warns(UserWarning, match="of step 1"), pytest.raises(ValueError, match="damaged"):
        restore(tmp_path, tracked(0))


def test_interrupted_save_is_no_checkpoint(tmp_path):
    write_checkpoint(tmp_path, 1, tracked(0))
    aside = tmp_path / "aside_000002"
    aside.mkdir()
    (aside / "tensors.safetensors").write_bytes(b"half")
    assert restore(tmp_path, tracked(0)) == 1
    assert not aside.exists()


def test_checkpoint_of_another_model_is_refused(tmp_path):
    write_checkpoint(tmp_path, 1, tracked(0))
    other = tracked(0) | {"model": nn.Linear(3, 3)}
    with pytest.raises(ValueError, match="another model than `model`"):
        restore(tmp_path, other)


def test_tied_and_non_contiguous_tensors_are_kept(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(3, 4, bias=False), "b": nn.Linear(3, 4, bias=False)})
    model["b"].weight = model["a"].weight
    model.register_buffer("turned", torch.randn(2, 3).t())
    expected = {name: x.clone() for name, x in model.state_dict().items()}
    write_checkpoint(tmp_path, 1, {"model": model})
    with torch.no_grad():
        model["a"].weight.zero_()
        model.turned.zero_()
    restore(tmp_path, {"model": model})
    assert all(torch.equal(expected[name], x) for name, x in model.state_dict().items())


def test_state_is_json_and_safetensors_only(tmp_path):
    path = write_checkpoint(tmp_path, 1, tracked(0))
    assert sorted(file.name for file in path.iterdir()) == ["state.json", "tensors.safetensors"]
    json.loads((path / "state.json").read_text())
