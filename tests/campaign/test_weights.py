"""Hostile files of weights through the real command line: exit code 2, one message, nothing in them runs."""

import json
import pickle
import random
import struct
import types
import zipfile
from collections import OrderedDict

import torch
from commands import hookflat
from safetensors.torch import save_file

from hookflat_plugins.digits import Digits
from hookflat_plugins.resnet_small import ResNetSmall

SMALL = ("data.train=20", "data.test=20", "model.width=8", "run.threads=1")
MEASURE = ("--measure", "clean_error", "--set", "eval.measures.examples=5")
COMMAND = ("--arch", "resnet_small", "--data", "digits", *(part for value in SMALL for part in ("--set", value)))


def good():
    """The weights of a small network, as a file would hold them."""
    torch.manual_seed(0)
    run = types.SimpleNamespace(data=Digits(train=20, test=20).build_data())
    return ResNetSmall(width=8).build_model(run=run).state_dict()


class Payload:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, proof):
        self.proof = str(proof)

    def __reduce__(self):
        return open, (self.proof, "w")


def hostile(weights, folder, seed=0):
    """(what, file) of every hostile file, written into `folder`; `folder / "proof"` is what a payload makes."""
    rng = random.Random(seed)
    floats = [name for name, t in weights.items() if t.is_floating_point()]
    name = rng.choice([n for n in floats if weights[n].dim() == 4])
    number = 0

    def file(kind, write):
        nonlocal number
        number += 1
        place = folder / f"w{number}{kind}"
        write(place)
        return place

    def saved(held):
        return lambda place: torch.save(held, place)

    for what, tensor in _tensors(weights[name]):
        yield f"{what} {name}", file(".pt", saved(weights | {name: tensor}))
        yield f"nested, {what} {name}", file(".pt", saved({"state_dict": weights | {name: tensor}, "epoch": 3}))
    for value in (float("nan"), float("inf"), -float("inf")):
        for chosen in rng.sample(floats, 8):
            tensor = weights[chosen].clone()
            tensor.view(-1)[rng.randrange(tensor.numel())] = value
            yield f"{value} in {chosen}", file(".pt", saved(weights | {chosen: tensor}))
            changed = weights | {chosen: tensor}
            yield (
                f"{value} in {chosen}, safetensors",
                file(".safetensors", lambda place, c=changed: save_file(c, place)),
            )
    for what, held in _holders(weights, folder / "proof"):
        yield what, file(".pt", saved(held))
        yield f"{what}, pickled", file(".pt", lambda place, h=held: place.write_bytes(pickle.dumps(h)))
    torch.save(weights, folder / "whole.pt")
    save_file(weights, folder / "whole.safetensors")
    for kind in (".pt", ".safetensors"):
        whole = (folder / f"whole{kind}").read_bytes()
        for _ in range(20):
            cut = rng.randrange(len(whole))
            yield f"cut{kind} at {cut}", file(kind, lambda place, c=cut, w=whole: place.write_bytes(w[:c]))
        for length in (0, 1, 7, 8, 9, 100, 10_000):
            noise = rng.randbytes(length)
            yield f"{length} random bytes{kind}", file(kind, lambda place, n=noise: place.write_bytes(n))
    for what, content in _headers(weights[name]):
        yield f"safetensors: {what}", file(".safetensors", lambda place, c=content: place.write_bytes(c))
    yield "a zip of something else", file(".pt", _zipped)


def _tensors(tensor):
    """The tensor of one name in every shape that no network takes."""
    yield "sparse", tensor.to_sparse()
    yield "sparse rows", tensor.flatten(1).to_sparse_csr()
    yield "without values", tensor.to("meta")
    yield "complex", tensor.to(torch.complex64)
    yield "quantised", torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)
    yield "of integers", (100 * tensor).to(torch.int8)
    yield "of booleans", tensor > 0
    yield "too large for float32", tensor.double() * 1e300
    yield "a huge view of one number", torch.zeros(()).expand(10**6, 10**6)
    yield "of another shape", tensor[:1]
    yield "empty", tensor[:0]
    yield "a scalar", torch.tensor(1.0)


def _holders(weights, proof):
    """Weights inside what no network takes."""
    yield "integer keys", dict(enumerate(weights.values()))
    yield "keys of bytes", {name.encode(): t for name, t in weights.items()}
    yield "tuples as keys", {(name, 0): t for name, t in weights.items()}
    yield "a long key", weights | {"x" * 50_000: torch.zeros(1)}
    yield "a key that colours the terminal", weights | {"\x1b[31m": torch.zeros(1)}
    yield "no key", OrderedDict()
    yield "a list", list(weights.values())
    yield "a number", 3
    yield "nothing", None
    yield "numbers", dict.fromkeys(weights, 1.0)
    yield "deep", _deep(weights, 200)
    yield "a payload", Payload(proof)
    yield "a payload beside", {"state_dict": weights, "extra": Payload(proof)}


def _deep(weights, depth):
    for _ in range(depth):
        weights = {"state_dict": weights}
    return weights


def _headers(tensor):
    """Safetensors files whose headers lie."""
    size = 4 * tensor.numel()
    shape = list(tensor.shape)
    right = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    lies = {
        "an offset beyond the end": right | {"data_offsets": [0, size + 4]},
        "a negative offset": right | {"data_offsets": [-4, size]},
        "offsets swapped": right | {"data_offsets": [size, 0]},
        "a huge shape": right | {"shape": [2**40, 2**40]},
        "a negative shape": right | {"shape": [-1, *shape[1:]]},
        "no such type": right | {"dtype": "F7"},
        "no shape": {"dtype": "F32", "data_offsets": [0, size]},
        "a list": [],
    }
    for what, entry in lies.items():
        header = json.dumps({"conv1.weight": entry}).encode()
        yield what, struct.pack("<Q", len(header)) + header + bytes(size)
    header = json.dumps({"conv1.weight": right}).encode()
    yield "a header longer than the file", struct.pack("<Q", 2**63) + header + bytes(size)
    yield "a header that is cut", struct.pack("<Q", len(header) - 5) + header + bytes(size)
    yield "another network's", struct.pack("<Q", len(header)) + header + bytes(size)
    deep = b'{"a":' * 5000 + b"1" + b"}" * 5000
    yield "a deep header", struct.pack("<Q", len(deep)) + deep


def _zipped(place):
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)


def failure(what, file, *command):
    """What is wrong with how a command on `file` ends; None where nothing is."""
    done = hookflat(*command, *COMMAND, "--out", file.parent / f"out of {command[0]}", cwd=file.parent)
    told, lines = done.stdout + done.stderr, done.stderr.splitlines()
    if done.returncode != 2 or "Traceback" in told or not lines:
        return f"{what}: exit code {done.returncode}: {told[-500:]}"
    if file.name not in told:
        return f"{what}: does not name the file: {told}"
    if len(lines) > 1 or len(lines[0]) > 2500 or not told.replace("\n", "").isprintable():
        return f"{what}: {len(lines)} lines, {len(told)} characters: {told[:500]}"
    if (file.parent / "proof").exists():
        return f"{what}: something in the file ran"
    return None


def test_weights(tally, tmp_path):
    failures, tried = [], 0
    for what, file in hostile(good(), tmp_path):
        for command in (("eval", file, *MEASURE), ("rescale", file, "2")):
            tried += 1
            failures += [told] if (told := failure(what, file, *command)) else []
    tally("files of weights: damaged, lying, hostile", tried, failures)
