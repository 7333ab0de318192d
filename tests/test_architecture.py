"""The house: layers import downward only, plugins stand on the face alone, and each can be taken out."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import hookflat
from hookflat.recipe.catalogue import Catalogue, hooks_of

ROOT = Path(__file__).parents[1]
LAYERS = (
    "functional",
    "reading",
    "recipe",
    "records",
    "training",
    "sharing",
    "evaluation",
    "studies",
    "reporting",
    "watching",
    "cli",
)
"""Each imports only what stands before it, and the modules below all of them."""
BELOW = {"collector", "errors", "threads", "hookspecs", "terminal", "display"}


def imports(file, *, annotations=False):
    """The modules of hookflat that a file imports, those for annotations alone aside."""
    tree = ast.parse(file.read_text())
    checking = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    for_annotations = {id(inner) for n in checking for inner in ast.walk(n)}
    for node in ast.walk(tree):
        if annotations or id(node) not in for_annotations:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "hookflat":
                yield from ([f"hookflat.{a.name}" for a in node.names] if node.module == "hookflat" else [node.module])
            elif isinstance(node, ast.Import):
                yield from (a.name for a in node.names if a.name.split(".")[0] == "hookflat")


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("annotations", [False, True], ids=["imports", "annotations"])
def test_layers_import_downward_only(layer, annotations):
    allowed = BELOW | set(LAYERS[: LAYERS.index(layer) + 1]) | ({"__version__"} if layer == "cli" else set())
    for file in (ROOT / "hookflat" / layer).rglob("*.py"):
        used = {[*name.split("."), ""][1] for name in imports(file, annotations=annotations)} - {""}
        assert used <= allowed, f"{file.relative_to(ROOT)} imports {used - allowed}"


def test_every_module_has_a_layer():
    top = {p.stem for p in (ROOT / "hookflat").iterdir() if not p.name.startswith("__") and p.suffix in ("", ".py")}
    assert top - {"py"} == {*LAYERS, *BELOW, "testing"}


def modules():
    files = {p: ".".join(p.relative_to(ROOT).with_suffix("").parts) for p in (ROOT / "hookflat").rglob("*.py")}
    return {name.removesuffix(".__init__"): file for file, name in files.items()}


def test_no_circles_not_even_of_annotations():
    """`hookspecs` aside: it describes what the loop hands to plugins, and is imported by what finds them."""
    graph = {name: set(imports(file, annotations=True)) for name, file in modules().items()}
    graph["hookflat.hookspecs"] = set()
    graph = {name: {u for u in used if u in graph} for name, used in graph.items()}
    while leaves := [name for name, used in graph.items() if not used]:
        graph = {name: used - set(leaves) for name, used in graph.items() if name not in leaves}
    assert graph == {}


def test_a_plugin_needs_the_face_alone():
    for file in (ROOT / "hookflat_plugins").glob("*.py"):
        used = set(re.findall(r"^\s*(?:from|import) (hookflat\S*)", file.read_text(), re.M))
        assert used <= {"hookflat"}, f"{file.name} imports {used - {'hookflat'}}"


def test_the_face_is_listed_once_typed_and_fast():
    listed = re.findall(r"^from \.[\w.]+ import (\w+) as \1$", (ROOT / "hookflat" / "__init__.pyi").read_text(), re.M)
    assert sorted(listed) == sorted(hookflat.__all__)
    assert len(set(listed)) == len(listed)
    assert all(getattr(hookflat, name) is not None for name in listed)
    for package in ("hookflat", "hookflat_plugins"):
        assert (ROOT / package / "py.typed").exists()
    names = ("UserError", "hookimpl", "Number", "Quantity")
    code = f"import sys, hookflat.cli; {'; '.join(f'hookflat.{n}' for n in names)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr


def test_a_look_at_all_plugins_imports_no_heavy_package_but_torch():
    """timm and torchvision take seconds to import, accelerate a fifth of one: who needs them does so when he does."""
    code = "import sys; from hookflat.recipe.catalogue import Catalogue; [s.load() for s in Catalogue()]; print("
    code += "{'timm', 'torchvision', 'datasets', 'matplotlib', 'accelerate', 'PIL'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_no_module_outside_the_plugins_knows_a_measure_by_name():
    names = {n for s in Catalogue() if hasattr(cls := s.load(), "numbers") for n in cls().numbers()}
    names -= {"clean_error", "sharpness"}  # a field and a function of the library
    for file in (ROOT / "hookflat").rglob("*.py"):
        if file.parts[len(ROOT.parts) + 1] not in ("functional", "testing.py"):
            known = {n for n in names if re.search(rf"[\"']{n}[\"']", file.read_text())}
            assert not known, f"{file.relative_to(ROOT)} names {known}"


def test_each_plugin_s_file_can_be_deleted(monkeypatch):
    """Without its file and its entry points all others are there as before: none imports another's."""

    def loaded():
        return {m for m in sys.modules if m.startswith("hookflat_plugins.")}

    targets = [s.target for s in Catalogue() if s.package.startswith("hookflat ")]
    files = {target.module for target in targets}
    for file in sorted(files):
        with monkeypatch.context() as alone:
            for module in loaded():
                alone.delitem(sys.modules, module)
            imported = import_module(file)
            assert all(hooks_of(getattr(imported, target.attr)) for target in targets if target.module == file), file
            assert loaded() & files == {file}, f"{file} imports another plugin's file"
            for module in loaded():
                alone.delitem(sys.modules, module)
