"Checkpoints of PyTorch as safetensors, in their authors' layouts."

import pytest
import torch
from safetensors.torch import load_file

from audiotag.cli import main
from audiotag.core.errors import AudiotagError
from audiotag.models.audioset import Cnn14, MobileNet
from audiotag.train.checkpoints import convert_checkpoint, network_of, read_checkpoint
from tests.models.test_audioset import cnn14_shapes, drawn, mobilenet_shapes


class Harmful:
    def __reduce__(self):
        return open, ("/tmp/never", "r")


@pytest.mark.parametrize("wrap", ["plain", "model", "state_dict", "module", "old"])
def test_the_tensors_arrive_however_they_were_saved(wrap, tmp_path):
    state = drawn(mobilenet_shapes(0.1))
    saved = {
        "model": {"iteration": 5, "model": state},
        "state_dict": {"state_dict": state, "epoch": 1},
        "module": {"model": {f"module.{k}": v for k, v in state.items()}},
    }.get(wrap, state)
    torch.save(saved, tmp_path / "w.pt", _use_new_zipfile_serialization=wrap != "old")
    done = convert_checkpoint(tmp_path / "w.pt", tmp_path / "w.safetensors", n_classes=527)
    found = load_file(tmp_path / "w.safetensors")
    assert found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)
    assert done.network == MobileNet(width=0.1, pretrained=str(tmp_path / "w.safetensors"))
    assert done.n_tensors == len(done.rows) == 294
    net = done.network.build(527)
    assert torch.equal(net.head[4].weight, state["classifier.5.weight"])


@pytest.mark.parametrize("width", [0.1, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 2.0, 3.0, 4.0])
def test_the_width_is_told_from_the_tensors(width):
    state = {k: torch.empty(s, device="meta") for k, s in mobilenet_shapes(width).items()}
    assert network_of(state) == MobileNet(width=width)


def test_other_networks():
    state = {k: torch.empty(s, device="meta") for k, s in cnn14_shapes(4).items()}
    assert network_of(state) == Cnn14(width=4)
    assert network_of({k: v for k, v in state.items() if "conv_block6" not in k}) is None  # CNN10 has four blocks
    assert network_of({"fc.weight": torch.zeros(1)}) is None


def test_tensors_that_share_memory_or_are_views(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    torch.save({"a": base, "b": base.T, "c": base[1:]}, tmp_path / "w.pt")
    done = convert_checkpoint(tmp_path / "w.pt", tmp_path / "w.safetensors")
    found = load_file(tmp_path / "w.safetensors")
    assert done.network is None and torch.equal(found["b"], base.T) and torch.equal(found["c"], base[1:])


def test_what_is_no_checkpoint(tmp_path):
    torch.save({"model": drawn({"a": (2, 2)}), "extra": Harmful()}, tmp_path / "code.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    (tmp_path / "page.pt").write_text("<html>")
    whole = tmp_path / "whole.pt"
    torch.save(drawn({"a": (200, 200)}), whole)
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:5000])
    for name in ("code", "empty", "tensor", "page", "cut", "none"):
        with pytest.raises(AudiotagError) as e:
            convert_checkpoint(tmp_path / f"{name}.pt", tmp_path / "w.safetensors")
        assert f"{name}.pt" in str(e.value)
    with pytest.raises(AudiotagError, match="no .safetensors file"):
        convert_checkpoint(whole, tmp_path / "w.pt")
    assert not (tmp_path / "w.safetensors").exists() and read_checkpoint(whole).keys() == {"a"}


def test_the_command_says_what_fits(tmp_path, capsys):
    torch.save({"model": drawn(cnn14_shapes(2))}, tmp_path / "c.pth")
    assert main(["weights", str(tmp_path / "c.pth"), str(tmp_path / "c.safetensors")]) == 0
    out = capsys.readouterr().out
    for part in ("84 tensors", '"kind": "Cnn14"', "12  transposed", "3  left out: the front end computes it", "527"):
        assert part in out, out
