"""Every command, import and link in the README and docs/ exists."""

from __future__ import annotations

import ast
import functools
import importlib
import io
import re
import runpy
import shlex
import sys
import tomllib
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from dtc_jax.arguments import parse_arguments
from dtc_jax.training import command as train_command

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LAUNCHERS = ("srun", "mpirun", "nohup", "time")
PLAIN = ("git", "cd", "export", "source")
# Flags of Slurm that the text names.
OF_OTHERS = ("--gpus-per-task", "--requeue", "--signal")


def blocks(page: Path, language: str) -> list[str]:
    """The page's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """Single commands of the page's shell blocks and of inline code such as `make demo` or `python train.py tiny`."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                found.append(shlex.join(words[: words.index("&&")]))
                words = words[words.index("&&") + 1 :]
            if words:
                found.append(shlex.join(words))
    found += re.findall(r"`((?:make|python|dtc-\w+) [^`]+)`", page.read_text())
    return list(dict.fromkeys(found))


def inline_flags(page: Path) -> list[str]:
    """The page's inline code that is flags alone, such as `--training.remat block`."""
    return list(dict.fromkeys(re.findall(r"`(--[a-z][^`\n]*)`", page.read_text())))


INLINE_FLAGS = [(page, flags) for page in PAGES for flags in inline_flags(page)]
COMMANDS = [(page, command) for page in PAGES for command in commands(page)]


@functools.cache
def help_text(program: tuple[str, ...]) -> str:
    """What a Python program prints for --help; in this process, which has imported most of it already."""
    kind, *arguments = program
    printed, failed = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(failed):
        patch.setenv("COLUMNS", "200")
        patch.chdir(ROOT)
        # The folder of a script, and for -m the current one.
        patch.syspath_prepend(str(ROOT))
        with pytest.raises(SystemExit) as ended:
            if kind == "-m":
                module, *rest = arguments
                patch.setattr(sys, "argv", [module, *rest, "--help"])
                with warnings.catch_warnings():
                    # That the module has been imported before.
                    warnings.simplefilter("ignore", RuntimeWarning)
                    runpy.run_module(module, run_name="__main__", alter_sys=True)
            elif kind == "-c":
                patch.setattr(sys, "argv", ["-c", "--help"])
                exec(arguments[0], {"__name__": "__main__"})
            else:
                patch.setattr(sys, "argv", [kind, *arguments, "--help"])
                runpy.run_path(str(ROOT / kind), run_name="__main__")
    assert not ended.value.code, f"{program} --help: {printed.getvalue()}{failed.getvalue()}"
    return printed.getvalue()


@functools.cache
def train_arguments(name: str) -> train_command.Arguments:
    config, _ = train_command.read_config(ROOT / "configs" / f"{name}.py")
    return train_command.Arguments(run_dir=Path("run"), config=config)


def check_train(name: str, arguments: list[str]) -> None:
    """That train.py understands the flags with their values; one without any may just be spoken of."""
    if len(arguments) == 1:
        assert has_flag(("train.py", name), arguments[0])
    else:
        parse_arguments(train_command.Arguments, arguments, f"train.py {name}", train_arguments(name))


def has_flag(program: tuple[str, ...], flag: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", help_text(program)) is not None


def check_flags(program: tuple[str, ...], arguments: list[str]) -> None:
    if program[0] == "train.py" and len(program) > 1 and "--help" not in arguments:
        check_train(program[1], arguments)
        return
    flags = [word.split("=")[0] for word in arguments if word.startswith("--") and word != "--help"]
    if not flags:
        help_text(program)
    for flag in flags:
        assert has_flag(program, flag), f"{program} has no {flag}"


def check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in arguments:
        name = word.split("=")[0]
        pattern = rf"^{re.escape(name)} \?=" if "=" in word else rf"^{re.escape(name)}:"
        assert re.search(pattern, makefile, flags=re.MULTILINE), f"the Makefile has no {name}"


def check_pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    for extra in re.findall(r"\[([\w,-]+)\]", " ".join(arguments)):
        assert set(extra.split(",")) <= set(PROJECT["optional-dependencies"]), f"no extra {extra}"


def split_python(arguments: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The program, as `help_text` takes it, and its arguments."""
    words = 2 if arguments[0] == "-m" else 1
    # train.py NAME and the like: the name selects which flags there are.
    words += len(arguments) > words and not arguments[words].startswith("-")
    return tuple(arguments[:words]), arguments[words:]


def check_python(arguments: list[str]) -> None:
    program, rest = split_python(arguments)
    if arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file(), f"no file {arguments[0]}"
    elif arguments[1].split(".")[0] == "dtc_jax":
        assert importlib.util.find_spec(arguments[1]) is not None, f"no module {arguments[1]}"
    else:
        return
    check_flags(program, rest)


def check_launch(script: str, arguments: list[str]) -> None:
    """A file of launch/, and the flags that it hands on to train.py after the name of an experiment."""
    assert (ROOT / script).is_file(), f"no file {script}"
    if arguments and arguments[0] == "run":
        arguments = arguments[1:]
    if arguments and (ROOT / "configs" / f"{arguments[0]}.py").is_file():
        check_flags(("train.py", arguments[0]), arguments[1:])


def check_entry_point(name: str, arguments: list[str]) -> None:
    module, function = PROJECT["scripts"][name].split(":")
    check_flags(("-c", f"import sys; from {module} import {function} as main; sys.exit(main())"), arguments)


def words_of(command: str) -> list[str]:
    """Without what stands before the program."""
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]) or words[0] in LAUNCHERS:
        words.pop(0)
    return words


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: getattr(value, "name", value))
def test_command_exists(page: Path, command: str) -> None:
    program, *arguments = words_of(command)
    if program == "make":
        check_make(arguments)
    elif program == "pip":
        check_pip(arguments)
    elif program in ("python", "python3"):
        check_python(arguments)
    elif program in PROJECT["scripts"]:
        check_entry_point(program, arguments)
    elif program == "sbatch":
        script = next(index for index, word in enumerate(arguments) if not word.startswith("-"))
        check_launch(arguments[script], arguments[script + 1 :])
    elif program.startswith("launch/"):
        check_launch(program, arguments)
    else:
        assert program in PLAIN, f"{page.name}: unknown command {command!r}"


def test_flags_in_the_text_are_some_program_s() -> None:
    called = (words_of(command) for _, command in COMMANDS)
    programs = {split_python(words[1:])[0] for words in called if words[0] == "python"}
    ours = [program for program in programs if program[0] != "-m" or program[1].startswith("dtc_jax.")]
    for page, flags in INLINE_FLAGS:
        for flag in (word.split("=")[0] for word in shlex.split(flags) if word.startswith("--")):
            known = flag in OF_OTHERS or flag.startswith("--xla_") or any(has_flag(program, flag) for program in ours)
            assert known, f"{page.name}: no program has {flag}"


@pytest.mark.parametrize(
    ("page", "flags"),
    [(page, flags) for page, flags in INLINE_FLAGS if "." in flags.split()[0]],
    ids=lambda value: getattr(value, "name", value),
)
def test_fields_are_set_as_the_command_line_does(page: Path, flags: str) -> None:
    check_train("sd15", shlex.split(flags))


def test_readme_names_the_two_commands() -> None:
    assert {"make demo", "make test"} <= set(commands(ROOT / "README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_import_what_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page.name}: {node.module} has no {alias.name}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: no {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_paths_and_modules_exist(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(r"`((?:dtc_jax|tests|configs|scripts|docs)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), f"{page.name}: no {path}"
    for name in re.findall(r"`(dtc_jax(?:\.\w+)+)`", text):
        first, *rest = name.split(".")
        found = importlib.import_module(first)
        for depth, part in enumerate(rest, start=1):
            if not hasattr(found, part):
                importlib.import_module(".".join([first, *rest[:depth]]))
            found = getattr(found, part)
