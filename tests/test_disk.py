"""What the disk refuses, outside of a training: one line and exit code 3, and nothing is lost."""

import errno
import os
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import fails
from faults import moments
from safetensors.torch import save_file

from hookflat import UserError, Work, report
from hookflat.reading import cache
from hookflat.records.disk import refused, replacing
from hookflat.records.folder import RunFolder
from hookflat.records.texts import LARGEST, DamagedError, read_json, read_lines, read_toml
from hookflat.records.weights import save_weights


def error(number, file=None):
    return OSError(number, os.strerror(number), file)


def test_what_the_disk_refused_is_found_behind_what_libraries_say(tmp_path):
    with pytest.raises(RuntimeError) as told:  # noqa: PT012 (as torch.save does)
        try:
            raise error(errno.ENOSPC)
        except OSError:
            raise RuntimeError("unexpected pos 768 vs 662")  # noqa: B904
    assert refused(told.value, tmp_path) == f"disk full: {tmp_path}: No space left on device. Free some space"
    assert refused(error(errno.EIO, "f")).startswith("the disk does not answer: f: Input/output error")
    assert refused(error(errno.EROFS, "f")).startswith("the disk is read-only: f")
    assert refused(error(errno.EACCES, "f")) is None
    assert refused(ValueError("disk full")) is None


def test_a_file_of_the_run_that_cannot_be_had_is_the_disk_s(tmp_path):
    lost = error(errno.ENOENT, str(tmp_path / "run" / "metrics.jsonl"))
    assert refused(lost, tmp_path / "run") is None
    assert "metrics.jsonl: No such file" in refused(lost, tmp_path / "run", inside=True)
    assert refused(lost, tmp_path / "other", inside=True) is None


def test_a_file_is_whole_or_as_it_was(tmp_path):
    file = tmp_path / "new" / "file"
    with replacing(file) as beside:
        beside.write_text("one")
    with pytest.raises(ZeroDivisionError), replacing(file) as beside:  # noqa: PT012
        beside.write_text("tw")
        raise ZeroDivisionError
    assert file.read_text() == "one"
    assert [p.name for p in file.parent.iterdir()] == ["file"]


DEEP, LONG = b'{"a":' * 60 + b"1" + b"}" * 60, b"[" + b"9" * 400 + b"]"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, DEEP, LONG, b'["\\ud800"]', b"nul"])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"f\.json is not what hookflat writes: "):
        read_json(tmp_path / "f.json")


@pytest.mark.parametrize("content", [b"[run", b"\xff", b"a = " + b"[" * 5000, b"a = " + b"9" * 30])
def test_damaged_toml_is_named(tmp_path, content):
    (tmp_path / "f.toml").write_bytes(content)
    with pytest.raises(DamagedError, match=r"f\.toml cannot be read: "):
        read_toml(tmp_path / "f.toml")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "f.json").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(DamagedError, match="more than"):
        read_json(tmp_path / "f.json")
    with pytest.raises(UserError, match="No such file"):
        read_json(tmp_path / "none.json")


def test_damaged_lines_are_counted_and_the_others_kept(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"epoch": 1, "rloss": 0.5}\n\x00\x00\n[]\n{"epoch": 2, "rloss": 1e999}\n{"epoch": 3, "rl')
    assert read_lines(file) == ([{"epoch": 1, "rloss": 0.5}, {"epoch": 2}], [2, 3, 5])


def test_commands_that_train_nothing_say_it_too(monkeypatch, tmp_path):
    def full(*_, **__):
        raise error(errno.ENOSPC, "report.html")

    monkeypatch.setattr("hookflat.reporting.writing.report", full)
    assert "disk full: report.html: No space left" in fails(3, "report", tmp_path)
    monkeypatch.setattr("hookflat.reporting.writing.report", lambda *_, **__: (tmp_path / "d").write_text(""))
    (tmp_path / "d").mkdir()
    assert "Is a directory" in fails(2, "report", tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError):
        report([tmp_path])


@pytest.mark.parametrize("command", [("init",), ("new-plugin", "mine", "--kind", "loss", "--out")])
def test_commands_that_begin_something_say_it_too(command, tmp_path):
    def full(what):
        raise error(errno.ENOSPC, what.partition(" ")[2])

    with moments(tmp_path, lambda what: what.startswith("open "), full) as tally:
        assert "disk full: " in fails(3, *command, tmp_path / "r.toml")
    assert tally.what


def test_a_write_that_fails_names_its_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as told, replacing(tmp_path / "a.txt"):
        raise error(errno.ENOSPC)
    assert refused(told.value).startswith(f"disk full: {tmp_path / 'a.txt'}")


# --- weights of runs -------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path):
    file = tmp_path / "run" / "model.safetensors"
    save_weights(file, torch.nn.Linear(3, 2), epoch=7, rescaled=2.0)
    return file


def test_one_flipped_bit_in_the_weights_of_a_run_is_told(weights):
    whole, folder = weights.read_bytes(), RunFolder(weights.parent)
    tensors, about = folder.load_network("last")
    assert about == {"epoch": 7, "rescaled": 2.0}
    of_tensors = len(whole) - sum(t.nbytes for t in tensors.values())
    for at in range(0, len(whole), 5):
        weights.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        if at >= of_tensors:
            with pytest.raises(UserError, match=re.escape(f"{weights} is damaged: its checksum")):
                folder.load_network("last")
        else:  # in the word "checksum", for example, a bit may do no harm
            with suppress(UserError):
                loaded, _ = folder.load_network("last")
                assert all(torch.equal(tensors[name], loaded[name]) for name in tensors)


@pytest.mark.parametrize("about", ['{"epoch": "x"}', '{"test": 4}', '{"rescaled": "2"}', "[1]", "[" * 100_000, "{"])
def test_what_strangers_note_in_weights_is_told(weights, about):
    save_file({"a": torch.zeros(1)}, weights, metadata={"hookflat": about})
    with pytest.raises(UserError, match=re.escape(str(weights))):
        RunFolder(weights.parent).load_network("last")


def test_names_that_strangers_note_in_weights_hide_none_of_ours(weights):
    about = '{"model": 1, "label": 2, "done": 3, "self": 4, "which": 5, "file": 6}'
    save_file({"a": torch.zeros(1)}, weights, metadata={"hookflat": about})
    known = RunFolder(weights.parent).load_network("last")[1]
    RunFolder(weights.parent).save_network("best", torch.nn.Linear(1, 1), **known)
    assert RunFolder(weights.parent).load_network("best")[1] == known


def test_what_a_run_writes_its_group_may_read(weights):
    umask = os.umask(0o027)
    try:
        save_weights(weights, torch.nn.Linear(1, 1))
    finally:
        os.umask(umask)
    assert weights.stat().st_mode & 0o777 == 0o640


def test_a_file_is_on_the_disk_before_it_takes_another_s_place(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr("os.fsync", lambda descriptor: done.append(os.fstat(descriptor).st_ino))
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda old, new: (done.append(f"renamed {old}"), replace(old, new))[1])
    with replacing(tmp_path / "a.json") as beside:
        beside.write_text("{}")
        number = beside.stat().st_ino
    assert done == [number, f"renamed {beside}"]


def flipped(file, at):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def test_a_part_of_a_measure_in_which_a_bit_flipped_is_computed_again(tmp_path):
    def once(value):
        return Work(tmp_path).once("part", lambda: {"loss": torch.full((3,), value)})["loss"].tolist()

    assert once(1.0) == once(2.0) == [1.0] * 3
    flipped(tmp_path / "part.safetensors", -1)
    assert once(3.0) == [3.0] * 3


def test_a_kept_array_in_which_a_bit_flipped_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HOOKFLAT_CACHE", str(tmp_path))
    made = []

    def parts():
        made.append(1)
        yield np.arange(6, dtype=np.uint8).reshape(2, 3)
        yield np.arange(6, 12, dtype=np.uint8).reshape(2, 3)

    def kept():
        return cache.kept_array("key", parts, 4).flatten().tolist()

    assert kept() == kept() == list(range(12))
    assert len(made) == 1
    flipped(tmp_path / "key.npy", -20)
    assert kept() == list(range(12))
    assert len(made) == 2
