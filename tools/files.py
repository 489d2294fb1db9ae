"""Reading the files of one folder."""

from pathlib import Path

from langchain_core.tools import BaseTool, StructuredTool, ToolException

LINES = 200
"""Most lines that one reading returns."""
CHARACTERS = 8000
"""Longest answer."""
ENTRIES = 200
"""Most names that one listing returns."""


def make_file_tools(folder: str | Path) -> list[BaseTool]:
    """Three tools that read below `folder` and nowhere else: `list_files`, `read_file` and `search_files`.

    Paths are relative to the folder; one that leads out of it, by `..` or by a link, is refused. Raises
    `NotADirectoryError` if there is no such folder.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise NotADirectoryError(f"there is no folder {str(folder)!r}; create it first")

    def list_files(path: str = ".") -> str:
        """List the files and folders at a path; folders end with a slash."""
        found = _inside(root, path)
        if not found.is_dir():
            raise ToolException(f"{path!r} is no folder; read it with read_file")
        names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in found.iterdir())
        more = [f"... and {len(names) - ENTRIES} more"] if len(names) > ENTRIES else []
        return "\n".join([*names[:ENTRIES], *more]) or "the folder is empty"

    def read_file(path: str, first_line: int = 1) -> str:
        """Read a text file from a line on (the first is 1)."""
        if first_line < 1:
            raise ToolException(f"first_line={first_line!r} must be at least 1")
        lines = _text(root, path).splitlines()
        if first_line > max(len(lines), 1):
            raise ToolException(f"{path!r} has {len(lines)} lines, so there is no line {first_line}")
        part = lines[first_line - 1 : first_line - 1 + LINES]
        return _cut("\n".join(part), len(lines) - (first_line - 1 + len(part)))

    def search_files(text: str, path: str = ".") -> str:
        """Find the lines that contain a text, in a file or in all files below a folder."""
        if not text:
            raise ToolException("the text to look for is empty")
        start = _inside(root, path)
        files = sorted(entry for entry in start.rglob("*") if entry.is_file()) if start.is_dir() else [start]
        hits = []
        for file in files:
            try:
                lines = _text(root, str(file.relative_to(root))).splitlines()
            except ToolException:
                continue  # not a text, or a link that leads out
            name = file.relative_to(root)
            hits += [f"{name}:{number}: {line.strip()}" for number, line in enumerate(lines, 1) if text in line]
        return _cut("\n".join(hits[:ENTRIES]), len(hits) - ENTRIES) if hits else f"no line contains {text!r}"

    return [
        StructuredTool.from_function(tool, handle_tool_error=True) for tool in (list_files, read_file, search_files)
    ]


def _inside(root: Path, path: str) -> Path:
    try:
        found = (root / path).resolve()
        exists = found.is_relative_to(root) and found.exists()
    except (OSError, ValueError) as error:
        raise ToolException(f"{path!r} is no path: {error}") from error
    if not found.is_relative_to(root):
        raise ToolException(f"{path!r} leads out of the folder; give a path inside it")
    if not exists:
        raise ToolException(f"there is no {path!r}; list_files shows what there is")
    return found


def _text(root: Path, path: str) -> str:
    found = _inside(root, path)
    try:
        return found.read_text(encoding="utf-8")
    except IsADirectoryError as error:
        raise ToolException(f"{path!r} is a folder; list it with list_files") from error
    except UnicodeDecodeError as error:
        raise ToolException(f"{path!r} is not a text in UTF-8") from error
    except OSError as error:
        raise ToolException(f"{path!r} cannot be read: {error.strerror}") from error


def _cut(text: str, left: int) -> str:
    if len(text) > CHARACTERS:
        return text[:CHARACTERS] + "\n... cut; ask for less"
    return f"{text}\n... and {left} more lines" if left > 0 else text
