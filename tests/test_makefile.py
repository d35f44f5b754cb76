"""The Makefile's help, and that its targets are what the documents say."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from experiments.__main__ import _parser

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-zA-Z_%-]+):", MAKEFILE, re.MULTILINE)


def make(*arguments: str) -> str:
    """What a command of make prints; nothing else of the environment may change it."""
    done = subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_alone_prints_every_target_with_its_help() -> None:
    assert len(TARGETS) == len(set(TARGETS)) > 10
    printed = dict(line.split(maxsplit=1) for line in make().splitlines())
    assert printed.keys() == set(TARGETS)
    assert all(len(text) > 10 for text in printed.values())
    assert make("help") == make()


def test_targets_that_are_no_files_are_phony() -> None:
    phony = re.findall(r"^\.PHONY:(.*)$", MAKEFILE, re.MULTILINE)[0].split()
    assert set(phony) == {target for target in TARGETS if "%" not in target}


def commands(document: str) -> list[str]:
    """The targets that a document tells the reader to make."""
    text = (ROOT / document).read_text()
    code = re.findall(r"`(make [^`]*)`", text) + re.findall(r"^(make .*)$", text, re.MULTILINE)
    words = [word for command in code for word in command.partition("#")[0].split()[1:]]
    return [word for word in words if "=" not in word and not re.match(r'[\d".]', word)]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_documents_name_targets_that_exist(document: str) -> None:
    found = commands(document)
    assert found
    for word in found:
        target = re.sub(r"<[^>]*>|\*", "x", word)
        fits = [t for t in TARGETS if re.fullmatch(t.replace("%", ".+"), target)]
        assert fits, f"{document} says `make {word}`"


def test_the_two_commands_of_the_readme_set_up_everything() -> None:
    """Each makes the virtual environment if need be."""
    text = (ROOT / "README.md").read_text()
    block = text.partition("## Two commands")[2].partition("```sh")[2].partition("```")[0]
    assert [line.split()[:2] for line in block.strip().splitlines()] == [["make", "demo"], ["make", "test"]]
    for target in TARGETS:
        needs = re.search(rf"^{re.escape(target)}:([^#\n]*)", MAKEFILE, re.MULTILINE)
        assert target in ("help", "venv") or (needs and "$(STAMP)" in needs[1]), target


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["table-reldn-8", "SET=trainer.max_epochs=3 loss.margin=0.1", "SEEDS=0 1", "PROFILE=smoke", "WORKERS=2"],
            {
                "command": "table",
                "paper": "reldn",
                "number": "8",
                "set": ["trainer.max_epochs=3", "loss.margin=0.1"],
                "seeds": [0, 1],
                "profile": "smoke",
                "workers": 2,
            },
        ),
        (["table-affinity-ablation"], {"command": "table", "number": "ablation", "profile": "paper", "seeds": None}),
        (["table-vrd_tensor-1"], {"paper": "vrd_tensor", "number": "1", "set": []}),
        (["figure-lml-3"], {"command": "figure", "paper": "lml", "number": "3"}),
        (["plan-reldn-8", "PROFILE=demo"], {"command": "plan", "paper": "reldn", "profile": "demo"}),
        (["tables"], {"command": "tables"}),
        (["status"], {"command": "status"}),
        (["demo"], {"command": "demo"}),
    ],
)
def test_targets_give_the_command_line_what_it_expects(arguments: list[str], expected: dict[str, object]) -> None:
    printed = [line for line in make("--dry-run", *arguments).splitlines() if "-m experiments" in line]
    (command,) = printed
    words = shlex.split(command)
    assert words[:3] == [".venv/bin/python", "-m", "experiments"]
    read = vars(_parser().parse_args(words[3:]))
    assert {key: read[key] for key in expected} == expected


def test_the_fast_tests_need_no_data_and_the_others_are_all() -> None:
    assert '-m "not slow and not real_data"' in make("--dry-run", "test")
    (line,) = [line for line in make("--dry-run", "test-all").splitlines() if "pytest" in line]
    assert "-m pytest" in line and "not slow" not in line
