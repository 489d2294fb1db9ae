"""Installs the real SGLang server for tests, on a machine without a GPU.

    python tests/sglang/install.py [FOLDER]

makes a virtual environment in FOLDER (build/sglang), or leaves it as it is if it was made from the same files.
README.md beside this file lists every departure from a stock install.
"""

import shutil
import subprocess
import sys
import time
import venv
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE.parent.parent / "build" / "sglang"

CHECK = """
import sgl_kernel, torch, torchvision, triton
import torchvision.transforms.functional as functional
import triton.language as tl

assert torch.version.cuda is None, "torch is built for CUDA; let pip find its CPU build"

@triton.jit
def kernel(x: tl.constexpr):
    tl.load(x)

for use in (
    lambda: kernel[(1,)](1),
    lambda: tl.load(1),
    lambda: functional.resize(1),
    lambda: torchvision.ops.nms(1),
    lambda: sgl_kernel.verify_tree_greedy_cpu(1),
):
    try:
        use()
    except NotImplementedError:
        continue
    raise SystemExit("a stand-in did not refuse")
import sglang
print("SGLang", sglang.__version__)
"""


def python(folder: Path) -> Path:
    """The interpreter of the environment in `folder`."""
    return folder / "bin" / "python"


def install(folder: Path = FOLDER) -> Path:
    """Make the environment, if it is not there; returns its interpreter."""
    stamp, mark = folder / "made-from", _digest()
    if stamp.is_file() and stamp.read_text() == mark:
        return python(folder)
    begun = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    pip = [str(python(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Without dependencies nothing of CUDA comes in; wheels only, since there may be no compiler.
    subprocess.run([*pip, "--no-deps", "--only-binary", ":all:", "-r", str(HERE / "requirements.txt")], check=True)
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = Path(subprocess.check_output([python(folder), "-c", where], text=True).strip())
    for source in sorted((HERE / "standins").iterdir()):
        if source.name == "__pycache__":
            continue
        target = packages / source.name
        if target.exists():
            raise SystemExit(f"{target} is the real package; there must be no stand-in beside it")
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    subprocess.run([python(folder), "-c", CHECK], check=True)
    stamp.write_text(mark)
    print(f"made {folder} in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return python(folder)


def _digest() -> str:
    files = [HERE / "requirements.txt", *sorted((HERE / "standins").rglob("*.py"))]
    return sha256(sys.version.encode() + b"".join(file.read_bytes() for file in files)).hexdigest()


if __name__ == "__main__":
    install(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
