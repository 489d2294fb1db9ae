"""Reading the files of one folder."""

import os
from collections.abc import Sequence
from pathlib import Path

from langchain_core.tools import BaseTool, StructuredTool, ToolException

LINES = 200
"""Most lines that one reading returns."""
CHARACTERS = 8000
"""Longest answer, its last notes not counted."""
ENTRIES = 200
"""Most names that one listing returns, and most lines that one search returns."""
WIDTH = 500
"""Most characters that a search shows of one line."""
LONGEST = 4096
"""Longest path, and longest text to look for, in characters."""
BYTES = 10_000_000
"""Largest file that is read."""


def make_file_tools(folder: str | Path) -> list[BaseTool]:
    """Three tools that read below `folder` and nowhere else: `list_files`, `read_file` and `search_files`.

    Paths are relative to the folder; one that leads out of it, by `..` or by a link, is refused. What is read are
    regular files of at most `BYTES` bytes whose name and text are UTF-8; an answer that had to be cut says where to go
    on. Raises `NotADirectoryError` if there is no such folder.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise NotADirectoryError(f"there is no folder {str(folder)!r}; create it first")

    def list_files(path: str = ".") -> str:
        """List the files and folders at a path; folders end with a slash."""
        found = _inside(root, path)
        if not found.is_dir():
            raise ToolException(f"{path!r} is no folder; read it with read_file")
        try:
            entries = os.listdir(found)
        except OSError as error:
            raise ToolException(f"{path!r} cannot be listed: {error.strerror}") from error
        names = sorted(f"{name}/" if os.path.isdir(found / name) else name for name in entries if _is_utf8(name))
        shown = names[:ENTRIES]
        lines = shown[: _fitting(shown)]
        if len(names) > len(lines):
            lines.append(f"... and {len(names) - len(lines)} more")
        if len(entries) > len(names):
            lines.append(f"... and {len(entries) - len(names)} whose names are not UTF-8, which cannot be read")
        return "\n".join(lines) or "the folder is empty"

    def read_file(path: str, first_line: int = 1, first_character: int = 1) -> str:
        """Read a text file from a line on (the first is 1), and from a character of that line on (the first is 1)."""
        for name, first in (("first_line", first_line), ("first_character", first_character)):
            if first < 1:
                raise ToolException(f"{name}={first!r} must be at least 1")
        lines = _text(root, path).splitlines() or [""]
        if first_line > len(lines):
            raise ToolException(f"{path!r} has {len(lines)} lines, so there is no line {first_line}")
        part = lines[first_line - 1 : first_line - 1 + LINES]
        if first_character > max(len(part[0]), 1):
            raise ToolException(f"line {first_line} of {path!r} has {len(part[0])} characters")
        part[0] = part[0][first_character - 1 :]
        whole = _fitting(part)
        if not whole:
            rest = f"first_line={first_line}, first_character={first_character + CHARACTERS}"
            return f"{part[0][:CHARACTERS]}\n... and more of this line; go on with {rest}"
        answer, next_line = "\n".join(part[:whole]), first_line + whole
        if next_line > len(lines):
            return answer
        return f"{answer}\n... and {len(lines) + 1 - next_line} more lines; go on with first_line={next_line}"

    def search_files(text: str, path: str = ".") -> str:
        """Find the lines that contain a text, in a file or in all text files below a folder."""
        if not text:
            raise ToolException("the text to look for is empty")
        if len(text) > LONGEST:
            raise ToolException(f"the text to look for has {len(text)} characters; at most {LONGEST} are taken")
        start = _inside(root, path)
        if not start.is_dir():
            return _listed(_hits(_text(root, path), text, path), text)
        hits: list[str] = []
        large = 0
        for name in _below(start, path):
            try:
                hits += _hits(_text(root, name), text, name)
            except _TooLarge:
                large += 1
            except ToolException:
                continue  # not a text, or a link that leads out
        note = f"\n... {large} files of more than {BYTES} bytes were not searched" if large else ""
        return _listed(hits, text) + note

    return [
        StructuredTool.from_function(tool, handle_tool_error=True) for tool in (list_files, read_file, search_files)
    ]


class _TooLarge(ToolException):
    """A file has more than `BYTES` bytes."""


def _inside(root: Path, path: str) -> Path:
    """Where `path` leads, without links. Raises `ToolException` unless that is there and inside `root`."""
    if len(path) > LONGEST:
        raise ToolException(f"the path has {len(path)} characters; at most {LONGEST} are taken")
    try:
        if not _is_utf8(path):
            raise ValueError
        found = Path(os.path.realpath(root / path))
        if found.is_relative_to(root):
            # NOTE: only the strict form has followed every link; the other leaves those behind a circle as they are.
            found = Path(os.path.realpath(root / path, strict=True))
    except ValueError as error:
        raise ToolException(f"{path!r} is no path; list_files shows what there is") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ToolException(
            f"there is no {path!r}, or it is a link to nothing; list_files shows what there is"
        ) from error
    except OSError as error:
        raise ToolException(f"{path!r} leads nowhere: {error.strerror}; list_files shows what there is") from error
    if not found.is_relative_to(root):
        raise ToolException(f"{path!r} leads out of the folder; give a path inside it")
    return found


def _is_utf8(name: str) -> bool:
    """Whether a name can be said: file systems allow any bytes, which Python shows as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _below(start: Path, path: str) -> list[str]:
    """The paths of all files below `start`, as they begin with `path`, which leads there."""
    files = [Path(folder, name) for folder, _, names in os.walk(start) for name in names]
    return [str(path / file.relative_to(start)) for file in sorted(files)]


def _text(root: Path, path: str) -> str:
    found = _inside(root, path)
    if found.is_dir():
        raise ToolException(f"{path!r} is a folder; list it with list_files")
    if not found.is_file():
        raise ToolException(f"{path!r} is no file but a pipe, a socket or a device; those are not read")
    try:
        with found.open("rb") as file:
            content = file.read(BYTES + 1)
        if len(content) > BYTES:
            raise _TooLarge(f"{path!r} has more than {BYTES} bytes; read another file")
        return content.decode()
    except UnicodeDecodeError as error:
        raise ToolException(f"{path!r} is not a text in UTF-8") from error
    except OSError as error:
        raise ToolException(f"{path!r} cannot be read: {error.strerror}") from error


def _hits(content: str, text: str, path: str) -> list[str]:
    found = [(number, line.strip()) for number, line in enumerate(content.splitlines(), 1) if text in line]
    return [f"{path}:{number}: {line if len(line) <= WIDTH else line[:WIDTH] + '...'}" for number, line in found]


def _listed(hits: Sequence[str], text: str) -> str:
    if not hits:
        return f"no line contains {text!r}"
    shown = hits[:ENTRIES]
    lines = shown[: _fitting(shown)]
    left = len(hits) - len(lines)
    return "\n".join(lines) + (f"\n... and {left} more lines; look for a longer text or in one file" if left else "")


def _fitting(lines: Sequence[str]) -> int:
    """How many of the first lines fit into `CHARACTERS` as a whole."""
    size = -1
    for count, line in enumerate(lines):
        size += 1 + len(line)
        if size > CHARACTERS:
            return count
    return len(lines)
