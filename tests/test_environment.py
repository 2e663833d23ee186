"""pyproject.toml, the lock and environment.yml describe one environment."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from companion import __version__
from companion.files import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def lock_entries():
    """(requirement, hashes) of every entry of the lock."""
    for entry in LOCK.replace("\\\n", " ").splitlines():
        if entry.strip() and not entry.lstrip().startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", entry.strip())
            yield Requirement(requirement), hashes


def wanted():
    """Every requirement of the project, of its extras and of its build."""
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    build = PROJECT["build-system"]["requires"]  # installed from the lock: builds are not isolated
    for text in [*project["dependencies"], *extras["book"], *extras["test"], *build]:
        yield Requirement(text)


def linux(python):
    return default_environment() | {
        "python_version": python,
        "python_full_version": f"{python}.5",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "extra": "",
    }


def test_every_entry_of_the_lock_is_pinned_and_carries_hashes():
    entries = list(lock_entries())
    assert len(entries) > 100
    for requirement, hashes in entries:
        (pin,) = requirement.specifier
        assert pin.operator == "==", requirement
        assert "*" not in pin.version, requirement
        assert hashes, f"{requirement} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", item) for item in hashes), requirement


def test_the_lock_holds_no_address():
    assert "://" not in LOCK
    assert not re.search(r"^\s*(-i|-f|--\w*(url|index|links|host)\w*)\b", LOCK, re.MULTILINE)
    assert all(requirement.url is None for requirement, _ in lock_entries())


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_pins_every_dependency_once_and_within_its_range(python):
    pins = {}
    for requirement, _ in lock_entries():
        if requirement.marker is None or requirement.marker.evaluate(linux(python)):
            name = canonicalize_name(requirement.name)
            assert name not in pins, f"{name} is pinned twice for Python {python}"
            pins[name] = next(iter(requirement.specifier)).version
    for requirement in wanted():
        version = pins.get(canonicalize_name(requirement.name))
        assert version, f"{requirement} is not in the lock for Python {python}: make lock"
        assert requirement.specifier.contains(version, prereleases=True), (
            f"the lock has {requirement.name} {version}, pyproject.toml wants {requirement}"
        )


def test_torch_and_torchvision_move_together():
    versions = {r.name: Version(next(iter(r.specifier)).version) for r, _ in lock_entries()}
    # released for each other: 2.13 with 0.28 (torchvision's minor number is torch's plus 15)
    assert versions["torchvision"].minor == versions["torch"].minor + 15


def test_conda_and_binder_install_the_lock_and_then_the_library():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    environment = yaml.safe_load(text)
    plain = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    # pip takes no editable project beside a list with hashes, so the library is a second step
    assert pip == ["-r requirements.lock"]
    assert "pip" in plain
    second = "pip install --no-deps -e ."
    assert second in (ROOT / "postBuild").read_text(encoding="utf-8")
    assert second in text
    # every version but Python's is the lock's business
    assert [d for d in plain if "=" in d] == [d for d in plain if d.startswith("python=")]


def test_all_agree_on_the_versions_of_python():
    allowed = SpecifierSet(PROJECT["project"]["requires-python"])
    for python, inside in [("3.10", False), *((p, True) for p in PYTHONS), ("3.15", False)]:
        assert allowed.contains(python) is inside
    environment = (ROOT / "environment.yml").read_text(encoding="utf-8")
    workflow = (ROOT / ".github/workflows/book.yml").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"- python=([\d.]+)", environment)[1] in PYTHONS
    assert re.search(r'python-version: "([\d.]+)"', workflow)[1] in PYTHONS
    low, high = re.search(r"\((3, \d+)\) <= v <= \((3, \d+)\)", makefile).groups()
    assert (low, high) == ("3, 11", "3, 14")
    # the lock is resolved for the oldest and holds for all
    assert "--python-version 3.11 " in makefile


def test_one_version_of_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["project"]["version"] == __version__ == citation["version"]


# ---------------------------------------------------------------- what may not stand in a file

FORBIDDEN = {
    "a package registry's host": r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.org",
    "a path of one machine": r"(?<![\w.~:}*-])/(?:work|root|tmp|home|opt|mnt|Users)/[\w.]",
}


def tracked_files():
    try:
        done = subprocess.run(
            shlex.split("git ls-files -z"), cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_names(what):
    pattern = re.compile(FORBIDDEN[what])
    found = []
    for path in tracked_files():
        if not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found += [
            f"{path.relative_to(ROOT)}: ...{text[max(0, m.start() - 30) : m.end() + 30]!r}"
            for m in pattern.finditer(text)
        ]
    assert not found, f"{what} stands in\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a package registry's host", "https://" + "py" + "pi.org/simple"),
        ("a path of one machine", 'open("' + "/" + 'tmp/x")'),
        ("a path of one machine", "see " + "/" + "root/.cache"),
    ],
)
def test_the_patterns_find_what_they_should(what, text):
    assert re.search(FORBIDDEN[what], text)


@pytest.mark.parametrize(
    "text", ["https://example.org/work/x", "~/work/y", "../tmp/x", "a/home/b", "/usr/bin/env"]
)
def test_the_patterns_leave_the_rest_alone(text):
    assert not any(re.search(pattern, text) for pattern in FORBIDDEN.values())


def test_a_wheel_has_all_that_the_library_reads(tmp_path):
    """Bodies, plates, tracks, claims and schemas: every file of the package but its caches."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    ours = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "src"], cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    for name in filter(lambda name: (ROOT / name).is_file(), ours):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path / "dist")], cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith("companion/")}
    assert inside == {name.removeprefix("src/") for name in ours if (ROOT / name).is_file()}
