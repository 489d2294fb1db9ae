"""The `tts-agent` command."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tts_agent import __version__
from tts_agent.errors import ConfigError, LogError, ModelError, TTSError
from tts_agent.trace.recorder import Log, read

if TYPE_CHECKING:
    from tts_agent.doctor import Diagnosis
    from tts_agent.engines.sglang.diagnosis import ServerDiagnosis


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    An error of ours is one line on stderr and status 2, as for wrong arguments.
    """
    options = _parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 must not stop a tree
    try:
        return int(options.run(options))
    except TTSError as error:
        print(f"tts-agent: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe (head, less) went away; nothing may be written to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tts-agent", description="Planning steps that search: a demonstration, and the trees of recorded searches."
    )
    parser.add_argument("--version", action="version", version=f"tts-agent {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_tree(commands.add_parser("tree", help="show the branch tree of the searches in a trace file"))
    _add_doctor(commands.add_parser("doctor", help="say whether a model can be served, and what to know of it"))
    _add_demo(commands.add_parser("demo", help="watch an agent plan by search, and compare searches at equal compute"))
    return parser


# --- tree


def _add_tree(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show the branch trees of a trace file: thoughts, verdicts, tokens, and why each search ended."
    parser.add_argument("file", help="a trace, as a Recorder or 'tts-agent demo' writes it")
    parser.add_argument("--search", metavar="NAME|N", help="only the search of this name, or the N-th of the file")
    parser.add_argument("--all", action="store_true", help="every thought; large trees are collapsed otherwise")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument("--html", metavar="FILE", help="write them as a page to look at in a browser instead")
    parser.set_defaults(run=_tree)


def _tree(options: argparse.Namespace) -> int:
    logs = read(options.file)
    if options.search is not None:
        logs = _selected(logs, options.search)
    if options.json and options.html is not None:
        raise ConfigError(f"--json and --html={options.html!r} are two things instead of a tree; name one of them")
    if options.json:
        print(json.dumps({"file": options.file, "searches": [_log_json(log) for log in logs]}, ensure_ascii=False))
        return 0
    if options.html is not None:
        return _write_page(logs, options)
    from rich.console import Console

    from tts_agent.trace.terminal import render

    console = Console()
    for log in logs:
        console.print(render(log, everything=options.all), soft_wrap=options.all)
    return 0


def _write_page(logs: list[Log], options: argparse.Namespace) -> int:
    from tts_agent.trace.page import MOST, page

    most = max((len(log.events) for log in logs), default=0) if options.all else MOST
    html = page(logs, title=Path(options.file).name, most=most)
    try:
        Path(options.html).write_text(html, encoding="utf-8")
    except OSError as error:
        raise LogError(f"cannot write the page {options.html!r}: {error.strerror}; name another file") from error
    print(f"wrote {options.html}: {len(logs)} {'search' if len(logs) == 1 else 'searches'}, {len(html):,} characters")
    return 0


def _selected(logs: list[Log], wanted: str) -> list[Log]:
    named = [log for log in logs if log.search == wanted]
    if named:
        return named
    if wanted.isdecimal() and 1 <= int(wanted) <= len(logs):
        return [logs[int(wanted) - 1]]
    names = ", ".join(f"{number} = {log.search!r}" for number, log in enumerate(logs, 1))
    raise LogError(f"the trace has no search {wanted!r}; it has {names}")


def _log_json(log: Log) -> dict[str, object]:
    from tts_agent.trace.statistics import statistics
    from tts_agent.tree import ThoughtTree

    tree, opened = ThoughtTree(log.events), log.opened
    chosen = tree.chosen
    return {
        "search": log.search,
        "cut": log.cut,
        "strategy": opened.strategy,
        "settings": opened.settings,
        "budget": opened.budget,
        "seed": opened.seed,
        "engine": opened.engine,
        "verifier": opened.verifier,
        "root": opened.root_text,
        "stop": chosen.stop if chosen else None,
        "limit": chosen.limit if chosen else None,
        "chosen": [thought.id for thought in tree.path(chosen.thought)]
        if chosen and chosen.thought is not None
        else [],
        "statistics": statistics(log.events, tree).to_json(),
        "thoughts": tree.to_json(),
    }


# --- doctor


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Load a Hugging Face model folder as the embedded engine does, read its chat template, and serve two requests; "
        "or ask an SGLang server what it can do. The exit status is 0 if the model can be served, else 1."
    )
    parser.add_argument("model", help="a model folder, or the address of an SGLang server (http://HOST:PORT)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    diagnosis = _server_diagnosis(options.model) if "://" in options.model else _folder_diagnosis(options.model)
    print(json.dumps(diagnosis.to_json(), ensure_ascii=False) if options.json else "\n".join(diagnosis.lines()))
    return 0 if diagnosis.supported else 1


def _folder_diagnosis(folder: str) -> "Diagnosis":
    try:
        from tts_agent.doctor import run
    except ModuleNotFoundError as missing:
        raise ModelError(
            f"'tts-agent doctor' needs {missing.name!r}, which is not installed; pip install 'tts-agent[embedded]'"
        ) from missing
    return run(folder)


def _server_diagnosis(address: str) -> "ServerDiagnosis":
    try:
        from tts_agent.engines.sglang.diagnosis import run
    except ModuleNotFoundError as missing:
        raise ModelError(
            f"'tts-agent doctor URL' needs {missing.name!r}, which is not installed; pip install 'tts-agent[sglang]'"
        ) from missing
    return run(address)


# --- demo


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = "A LangGraph agent solves a puzzle by search, then searches are compared at equal compute."
    parser.add_argument("--puzzles", type=int, metavar="N", help="puzzles of each kind (by default 300 and 120)")
    parser.add_argument("--seed", type=int, default=0, help="which puzzle the agent plays, and all sampling (0)")
    parser.add_argument(
        "--out", metavar="FILE", default="demo-trace.jsonl", help="the agent's trace (demo-trace.jsonl)"
    )
    parser.add_argument(
        "--engine", metavar="URL", default="embedded://pocket", help="embedded://FOLDER of such a planner"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from tts_agent.demo import run

    result = run(engine=options.engine, puzzles=options.puzzles, seed=options.seed, out=options.out)
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
