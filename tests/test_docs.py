"""What README.md and docs/ name exists: links, anchors, paths, commands, flags, fields."""

import ast
import dataclasses
import importlib.util
import itertools
import re
import shlex
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import flexdraft_jax as fd
from flexdraft_jax.training.config import TrainDraftConfig, TrainTargetConfig
from flexdraft_jax.training.config_files import apply_overrides, load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))

_FENCE = re.compile(r"^(```+)(\w*)\n(.*?)^\1$", flags=re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_FOLDERS = "flexdraft_jax|infer|train|configs|tests|docs"
_PATH = re.compile(rf"(?<![\w/.~-])(?:{_FOLDERS})/[\w./*-]*")
_COMMAND = re.compile(r"python ((?:infer|train|docs|tests)/[\w/]+\.py)([^`\n]*)")
_GROUPS = "train|loop|step|eval|mesh|objective"


@dataclasses.dataclass(frozen=True)
class Page:
    """A page, with the code that stands in it.

    Attributes:
        path: of the file.
        prose: all of it but the fences.
        fences: (language, content); a line that goes on is one line.
        code: fences and inline code, each on lines of its own.
    """

    path: Path
    prose: str
    fences: list[tuple[str, str]]
    code: str


def read_page(path: Path) -> Page:
    text = path.read_text()
    fences = [(m[2], m[3].replace("\\\n", " ")) for m in _FENCE.finditer(text)]
    prose = _FENCE.sub("", text)
    # Indented code has no line that begins further to the left than four spaces.
    indented = re.findall(r"^    \S.*$", prose.replace("\\\n", " "), flags=re.MULTILINE)
    spans = [" ".join(span.split()) for span in _SPAN.findall(prose)]
    return Page(path, prose, fences, "\n".join([*(c for _, c in fences), *indented, *spans]))


PAGE = {path.relative_to(ROOT).as_posix(): read_page(path) for path in PAGES}
COMMANDS = sorted({match[0] for page in PAGE.values() for match in _COMMAND.finditer(page.code)})


def anchors(page: Page) -> set[str]:
    """What a heading is linked by, on GitHub and in the built site alike."""
    headings = re.findall(r"^#+ (.*)$", page.prose, flags=re.MULTILINE)
    words = [re.sub(r"[^\w\s-]", "", heading).lower().split() for heading in headings]
    return {"-".join(heading) for heading in words}


def links(page: Page) -> list[str]:
    """Targets of links and images, but for those that lead elsewhere."""
    found = re.findall(r"\]\(\s*([^)\s]+)\s*\)", _SPAN.sub("", page.prose))
    return [link for link in found if not re.match(r"https?://", link)]


@pytest.mark.parametrize("name", PAGE)
def test_links_lead_somewhere(name: str) -> None:
    page = PAGE[name]
    for link in links(page):
        file, _, anchor = link.partition("#")
        path = (page.path.parent / file).resolve() if file else page.path
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(read_page(path)), link
        if page.path.parent.name == "docs":
            assert path.is_relative_to(ROOT / "docs"), f"{link} is not part of the built site"


def test_broken_links_would_be_seen() -> None:
    page = Page(ROOT / "README.md", "[a](docs/none.md) [b](#what) `[c](d)` ![e](f.png)", [], "")
    assert links(page) == ["docs/none.md", "#what", "f.png"]
    assert anchors(Page(page.path, "## Not `equal` in 2 % (bfloat16)?", [], "")) == {
        "not-equal-in-2-bfloat16"
    }


@pytest.mark.parametrize("name", PAGE)
def test_paths_exist(name: str) -> None:
    for found in _PATH.findall(PAGE[name].code):
        path = found.rstrip(".")
        assert list(ROOT.glob(path)) if "*" in path else (ROOT / path).exists(), path


@pytest.mark.parametrize("name", PAGE)
def test_files_named_alone_exist(name: str) -> None:
    for span in _SPAN.findall(PAGE[name].prose):
        if re.fullmatch(r"\w+\.(py|md|toml|cff|yml)", span):
            inside = (path for f in _FOLDERS.split("|") for path in (ROOT / f).rglob(span))
            assert [*ROOT.glob(span), *inside], span


def test_commands_were_found() -> None:
    assert len(COMMANDS) >= 25
    assert any("--pod" in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_scripts_and_flags_that_exist(command: str) -> None:
    script = ROOT / command.split()[1]
    source = script.read_text()
    for flag in re.findall(r"--(\w+)", command):
        assert re.search(rf'DEFINE_\w+\(\s*"{flag}"', source), f"{script.name} has no --{flag}"


def test_flags_named_alone_exist() -> None:
    scripts = [*(ROOT / "infer").glob("*.py"), *(ROOT / "train").glob("*.py")]
    known = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', "".join(p.read_text() for p in scripts)))
    named = {
        flag
        for page in PAGE.values()
        for span in _SPAN.findall(page.prose)
        if span.startswith("--")
        for flag in re.findall(r"--(\w+)(?![\w-])", span)
    }
    assert len(named) >= 8
    assert named <= known | {"help"}


@pytest.fixture(scope="module")
def configs() -> list[TrainDraftConfig | TrainTargetConfig]:
    folder = ROOT / "configs"
    return [
        load_config(folder / "tiny_draft.py", TrainDraftConfig),
        load_config(folder / "tiny_target.py", TrainTargetConfig),
    ]


def test_fields_of_configurations_exist(configs) -> None:
    text = "\n".join(page.code for page in PAGE.values())
    overrides = re.findall(r"--set[ =]([\w.]+=[^\s`]+)", text)
    assert len(overrides) >= 8
    for override in overrides:
        errors = []
        for config in configs:
            try:
                apply_overrides(config, [override])
            except ValueError as error:
                errors.append(str(error))
        assert len(errors) < len(configs), errors
    names = re.findall(rf"^(?:{_GROUPS})\.[\w.]+$", text, flags=re.MULTILINE)
    for name in (name for name in names if not name.endswith(".py")):
        values = list(configs)
        for part in name.split("."):
            values = [getattr(value, part) for value in values if hasattr(value, part)]
        assert values, name


def test_targets_of_make_and_extras_exist() -> None:
    text = "\n".join(page.code for page in PAGE.values())
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|[\s`])make ([a-z-]+)", text, flags=re.MULTILINE))
    assert {"demo", "test", "docs"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    setup = (ROOT / "setup.py").read_text()
    named = re.findall(r'pip install "\.\[([\w,]+)\]"|make install EXTRAS=([\w,]+)', text)
    assert len(named) >= 4
    for extras in map("".join, named):
        for extra in extras.split(","):
            assert f'"{extra}": [' in setup, extra


@pytest.mark.parametrize("name", PAGE)
def test_python_in_pages_can_be_parsed(name: str) -> None:
    for language, content in PAGE[name].fences:
        if language == "python":
            ast.parse(content)


def test_commands_of_training_are_those_of_the_configuration() -> None:
    def commands(text: str) -> list[list[str]]:
        lines = (line.strip() for line in text.splitlines())
        return [shlex.split(line) for line in lines if line.startswith("python ")]

    source = (ROOT / "configs/qwen3_0p6b_colab.py").read_text()
    (_, shown), *_ = PAGE["docs/train_your_own.md"].fences
    assert len(commands(shown)) == 5
    assert commands(shown) == commands(ast.get_docstring(ast.parse(source)) or "")


def test_first_call_of_the_site_is_that_of_the_readme() -> None:
    first = [
        next(content for language, content in PAGE[page].fences if language == "python")
        for page in ("README.md", "docs/index.md")
    ]
    assert first[0] == first[1]


def test_navigation_has_every_page() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    listed = re.findall(r"^  - (?:\w+: )?(\w+\.md)$", navigation, flags=re.MULTILINE)
    assert sorted(listed) == [path.name for path in sorted((ROOT / "docs").glob("*.md"))]
    readme = {link for link in links(PAGE["README.md"]) if link.startswith("docs/")}
    assert {f"docs/{page}" for page in listed if page != "index.md"} <= readme


def test_every_public_name_is_described() -> None:
    called = re.findall(r"^::: flexdraft_jax\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    fields = re.findall(r"`fd\.(\w+)`", (ROOT / "docs/configuration.md").read_text())
    assert set(called) <= set(fd.__all__) <= {*called, *fields}


def test_citation_is_of_this_version() -> None:
    version = re.search(r'version="([\d.]+)"', (ROOT / "setup.py").read_text())
    cited = re.search(r"^version: ([\d.]+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert version and cited and version[1] == cited[1]


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_configuration_page_is_what_the_dataclasses_say() -> None:
    module = script("configuration")
    stale = "run: python docs/configuration.py"
    assert module.PAGE.read_text() == module.render(), stale


def test_a_field_without_a_word_is_refused() -> None:
    @dataclasses.dataclass
    class Silent:
        said: int = 1  # What it is.
        unsaid: int = 2

    with pytest.raises(ValueError, match="Silent.unsaid has no comment"):
        script("configuration").fields_of(Silent)


def test_figures_are_what_the_masks_say() -> None:
    module = script("figures")
    for name, svg in module.figures().items():
        path = module.FIGURES / name
        assert path.read_text() == svg, "run: python docs/figures.py"


def test_drawn_mask_is_that_of_the_definition() -> None:
    length, slots, drafts, n = 3, 5, 2, 4
    mask = script("figures").step_mask(length, slots, drafts, n)
    count = drafts + 1
    # (kind, group or -1, candidate or slot)
    queries = [("candidate", -1, i) for i in range(count)]
    queries += [("mask", k, j) for k, j in itertools.product(range(count), range(n))]
    keys = [("cache", -1, s) for s in range(slots)] + queries

    def sees(query: tuple[str, int, int], key: tuple[str, int, int]) -> bool:
        if key[0] == "cache":
            return key[2] < length
        if key[0] == "candidate":
            return key[2] <= (query[2] if query[0] == "candidate" else query[1])
        return query[0] == "mask" and query[1] == key[1]

    expected = np.array([[sees(query, key) for key in keys] for query in queries])
    np.testing.assert_array_equal(mask, expected)
