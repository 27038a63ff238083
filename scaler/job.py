"""The job's side of `scaler submit`, on the cluster: `python -m scaler.job NAME`."""

import argparse
import importlib.util
import json
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

from scaler.cli import exit_code
from scaler.errors import ClusterFailed


def main() -> None:
    """Run the launch that was sent along; leave its run folder or answer where the dashboard serves it."""
    parser = argparse.ArgumentParser(prog="scaler.job", description=__doc__, allow_abbrev=False)
    parser.add_argument("name", help="of the job")
    parser.add_argument("--resume", action="store_true", help="continue the run in its storage path")
    parser.add_argument("--force", action="store_true", help="overwrite the run in its storage path")
    options = parser.parse_args()
    _require_packages()

    from scaler.launch import LaunchConfig
    from scaler.pipeline import tune
    from scaler.report.progress import TerminalProgress
    from scaler.schema import write_atomically
    from scaler.submit.fetch import log_folder
    from scaler.submit.ship import STAGED, comes_back

    spec = importlib.util.find_spec(STAGED)
    assert spec is not None and spec.submodule_search_locations is not None
    staged = Path(next(iter(spec.submodule_search_locations)))
    _tell_versions(json.loads((staged / "versions.json").read_text(encoding="utf-8")))
    launch = LaunchConfig.load(staged / "launch.yaml")
    served = _log_folder() / log_folder(options.name)
    if comes_back(launch.storage_path):
        launch = launch.model_copy(update={"storage_path": str(served)})
        if options.resume:
            shutil.copytree(staged / "run", served)
    with TerminalProgress() as progress:
        config = tune(
            launch, resume=options.resume, force=options.force, progress=progress, notice=progress.notice
        )
    served.mkdir(parents=True, exist_ok=True)
    write_atomically(served / "batch-config.yaml", config.to_yaml())


def _log_folder() -> Path:
    """Give the log folder of this node's Ray: the job's log, to which stdout goes, lies in it."""
    log = Path("/proc/self/fd/1")
    if not log.is_file():
        raise ClusterFailed(
            "the job's log is not a file on its node, so the run folder cannot be left beside it",
            hint="`ray job submit` with launch/tune.py needs none, with an absolute or remote storage_path",
        )
    return log.readlink().parent


def _require_packages() -> None:
    """Refuse a cluster that lacks what this scaler needs, all of it in one message."""
    try:
        needed = metadata.requires("scaler") or []
        python = metadata.metadata("scaler")["Requires-Python"] or ""
    except metadata.PackageNotFoundError:  # sent from a clone that is not installed
        return
    if lacking := unmet(needed, python):
        raise ClusterFailed(
            "\n".join(
                [f"{sys.executable} on the cluster lacks what scaler needs:", *(f"  - {x}" for x in lacking)]
            ),
            hint="install it where the cluster's nodes run, such as in their image",
        )


def unmet(requirements: list[str], python: str) -> list[str]:
    """Give what is not fulfilled here of a package's requirements, extras aside, and of its Pythons."""
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return ["ray: not installed"]
    found = []
    if platform.python_version() not in SpecifierSet(python, prereleases=True):
        found.append(f"python{python}: {platform.python_version()}")
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = "not installed"
        if version == "not installed" or not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement}: {version}")
    return found


def _tell_versions(sender: dict[str, str]) -> None:
    """Name every version that differs between the sender and the cluster."""
    from scaler.records import versions

    own = {found.version for found in metadata.distributions(name="scaler")}
    if differences := version_differences(sender, versions(), own):
        print(f"note: versions differ: {'; '.join(differences)}", file=sys.stderr)


def version_differences(sender: dict[str, str], here: dict[str, str], installed: set[str]) -> list[str]:
    """Compare the sender's Python, Ray and torch with the cluster's, and its scaler with those there.

    The sender's scaler travels with the job, and the last number of a Python makes no difference.
    """
    sent = {**sender, "python": sender["python"].rpartition(".")[0]}
    here = {**here, "python": here["python"].rpartition(".")[0]}
    found = [
        f"{name} {here.get(name, 'missing')} on the cluster, {sent[name]} where the job was submitted"
        for name in ("python", "ray", "torch")
        if name in sent and here.get(name) != sent[name]
    ]
    others = sorted(installed - {sender.get("scaler", "")})
    if others and "scaler" in sender:
        found.append(
            f"scaler {sender['scaler']} came with the job, {', '.join(others)} on the cluster is not used"
        )
    return found


if __name__ == "__main__":
    sys.exit(exit_code(main))
