"""Malformed recipes through the real command line: exit code 2, file and key named, in seconds, no traceback."""

import random
import re
import signal
from contextlib import contextmanager
from dataclasses import dataclass

from commands import hookflat

from hookflat.recipe.shipped import recipes_folder

SECONDS = 10
_KEY = re.compile(r"(\w+) = (.+?)(\s+#.*)?")
_HEADER = re.compile(r"\[([\w.]+)\](\s+#.*)?")


@dataclass
class Malformed:
    """A recipe, and what the message about it must hold."""

    what: str
    content: bytes
    named: tuple[str, ...] = ()


def structured():
    """Every key and every table of every shipped recipe: misspelt, of another type, out of range."""
    for path in sorted(recipes_folder().glob("*.toml")):
        lines = path.read_text().splitlines()
        table = ""
        for number, line in enumerate(lines, 1):
            if header := _HEADER.fullmatch(line):
                table = header[1]
                if not re.fullmatch(r"eval\.\w+", table):  # any name is a stage's
                    yield _with(path.stem, lines, number, f"[{_misspelt(table)}]", _misspelt(table))
            elif key := _KEY.fullmatch(line):
                name, value = key[1], key[2]
                yield _with(path.stem, lines, number, f"{_misspelt(name)} = {value}", _misspelt(name))
                full = f"{table}.{name}".strip(".")
                for wrong in _wrong(value):
                    no_toml = len(wrong) > 100 and wrong[0] in "[9"  # so that only the line's own key is known
                    yield _with(path.stem, lines, number, f"{name} = {wrong}", name if no_toml else full)


def _misspelt(name):
    return name[:-1] + "q" + name[-1]


def _wrong(value):
    """Values of another type, and out of every range."""
    if value in ("true", "false"):
        return ["7", '"maybe"']
    if value.startswith('"') and not re.fullmatch(r'"[\d./ ]+"', value):
        return ["7", "[[1]]", '"' + 5000 * "x" + '"', '"\\u001b[31m"']
    if value.startswith("["):
        return ["{ a = 1 }", 500 * "[" + 500 * "]", "[nan]"]
    return ['"many"', "true", "nan", '"1e999999999"', "1" + 30 * "0", 5000 * "9", "[[[1]]]"]


def _with(stem, lines, number, line, name):
    changed = [*lines[: number - 1], line, *lines[number:]]
    return Malformed(f"{stem}:{number}: {line[:60]}", "\n".join(changed).encode(), (f"r.toml:{number}", name))


def raw(seed):
    """Recipes cut inside a line, with bytes that are no text, nested too deep, or of random bytes; without end."""
    rng = random.Random(seed)
    texts = [path.read_text() for path in sorted(recipes_folder().glob("*.toml"))]
    while True:
        text = rng.choice(texts)
        spot = rng.randrange(len(text))
        equals = rng.choice([m.end() for m in re.finditer(r"^\w+ =", text, re.MULTILINE)])
        deep = rng.randrange(100, 3000)
        kind = rng.choice(sorted(_RAW))
        yield Malformed(kind, _RAW[kind](rng, text, spot, equals, deep))


_RAW = {
    "cut after an equals sign": lambda rng, text, spot, equals, deep: text[:equals].encode(),
    "cut inside a string": lambda rng, text, spot, equals, deep: f'{text}\nx = "{text[:5]}'.encode(),
    "cut inside a header": lambda rng, text, spot, equals, deep: f"{text}\n[loss".encode(),
    "no UTF-8": lambda rng, text, spot, equals, deep: text[:spot].encode() + b"\xff\xfe" + text[spot:].encode(),
    "a NUL": lambda rng, text, spot, equals, deep: (text[:spot] + "\0" + text[spot:]).encode(),
    "random bytes": lambda rng, text, spot, equals, deep: b"\xff" + rng.randbytes(deep),
    "nothing": lambda rng, text, spot, equals, deep: b"",
    "white space": lambda rng, text, spot, equals, deep: b" \n\t" * deep,
    "only a comment": lambda rng, text, spot, equals, deep: b"# " + text[:40].replace("\n", " ").encode(),
    "lists in lists": lambda rng, text, spot, equals, deep: f"{text}\nx = {'[' * deep}{']' * deep}\n".encode(),
    "lists without end": lambda rng, text, spot, equals, deep: f"{text}\nx = {'[' * deep}\n".encode(),
    "tables in tables": lambda rng, text, spot, equals, deep: f"{text}\n[{'.'.join(deep * 'a')}]\n".encode(),
    "inline tables": lambda rng, text, spot, equals, deep: f"{text}\nx = {'{a=' * deep}1{'}' * deep}\n".encode(),
    "keys in keys": lambda rng, text, spot, equals, deep: f"{text}\nx.{'.'.join(deep * 'a')} = 1\n".encode(),
    "many tables": lambda rng, text, spot, equals, deep: (text + "".join(f"\n[x{i}]" for i in range(deep))).encode(),
    "many options": lambda rng, text, spot, equals, deep: (
        text + "\n[zz]" + "".join(f"\nx{i} = 1" for i in range(deep))
    ).encode(),
    "too large": lambda rng, text, spot, equals, deep: (text + "#" * 300_000).encode(),
    "a long name": lambda rng, text, spot, equals, deep: f"{text}\n[{'x' * deep}]\n".encode(),
    "extends a long name": lambda rng, text, spot, equals, deep: f'extends = "{"x" * deep * 3}"\n'.encode(),
    "extends itself": lambda rng, text, spot, equals, deep: b'extends = "r.toml"\n',
    "extends a number": lambda rng, text, spot, equals, deep: b"extends = [1, 2]\n",
    "a long number": lambda rng, text, spot, equals, deep: f"{text}\n[zz]\nx = {'7' * (deep + 4300)}\n".encode(),
    "the same table twice": lambda rng, text, spot, equals, deep: f"{text}\n[zz]\n[zz]\n".encode(),
    "spaces in a header": lambda rng, text, spot, equals, deep: f'{text}\nx = """\n[{" " * deep * 20}"""\n'.encode(),
}


class TookTooLongError(BaseException):
    """A command took more than `SECONDS`."""


@contextmanager
def limited():
    def late(*_):
        raise TookTooLongError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def failure(case, folder, command="run"):
    """What is wrong with how the command ends; None where nothing is."""
    file = folder / "r.toml"
    file.write_bytes(case.content)
    try:
        with limited():
            done = hookflat(command, "r.toml", *(["--out", folder / "run"] if command == "run" else []), cwd=folder)
    except TookTooLongError:
        return f"{case.what}: took more than {SECONDS} s"
    told, lines = done.stdout + done.stderr, done.stderr.splitlines()
    if done.returncode != 2 or "Traceback" in told or not lines:
        return f"{case.what}: exit code {done.returncode}: {told[-500:]}"
    for name in ("r.toml", *case.named):
        if name not in told:
            return f"{case.what}: does not name {name!r}: {told[:500]}"
    if len(lines) > 21 or max(map(len, lines)) > 1500 or not told.replace("\n", "").isprintable():
        return f"{case.what}: {len(lines)} lines, the longest of {max(map(len, lines))}: {told[:500]}"
    return "something was written" if (folder / "run").exists() else None


def test_structured(tally, tmp_path):
    cases = list(structured())
    tally("recipes: a key misspelt, of another type, out of range", len(cases), _failures(cases, tmp_path))


def test_raw(tally, tmp_path):
    source = raw(0)
    cases = [next(source) for _ in range(400)]
    tally("recipes: cut, binary, nested, endless", len(cases), _failures(cases, tmp_path))


def _failures(cases, folder):
    hookflat("show", "at")  # what is imported once takes longer than a recipe may
    return [told for case in cases if (told := failure(case, folder))]
