"""The sessions of this repository; CONTRIBUTING.md says when to run which.

Every package is tested from its built wheel, in an environment that holds what the package
declares and nothing else. Wheels are built once and kept in .whl until their sources change;
environments are kept in .nox until constraints.txt or a declared dependency changes. pip and
virtualenv do the work, whatever else is installed, so that a fresh machine behaves as CI does.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import nox
from nox.project import load_toml
from packaging.requirements import Requirement

nox.needs_version = ">=2025.2.9"  # the first with `requires`
nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "virtualenv"

ROOT = Path(__file__).parent
WHEELS = ROOT / ".whl"
RESULTS = ROOT / ".nox" / "results"
CONSTRAINTS = ROOT / "constraints.txt"
PROJECTS = {
    path.parent.name: load_toml(path) for path in sorted(ROOT.glob("packages/*/pyproject.toml"))
}
PACKAGES = list(PROJECTS)
SOURCES = ":".join(str(ROOT / "packages" / p / "src") for p in PACKAGES)

# With the extra "test", and with triton for the kernels: they run in its interpreter.
TESTED = {p: f"{p}[test,triton]" if p == "ao-kernels" else f"{p}[test]" for p in PACKAGES}


def declared(package: str, extras: set[str]) -> list[str]:
    """What ``package[extras]`` of this repository declares."""
    project = PROJECTS[package]["project"]
    optional = project.get("optional-dependencies", {})
    return [*project.get("dependencies", []), *(r for e in sorted(extras) for r in optional[e])]


def closure(requirements: list[str]) -> tuple[dict[str, set[str]], list[str]]:
    """The packages of this repository that are needed, with extras; the other requirements."""
    ours: dict[str, set[str]] = {}
    others: list[str] = []
    queue = list(requirements)
    while queue:
        each = Requirement(queue.pop(0))
        if each.name not in PROJECTS:
            others.append(str(each))
        elif each.name not in ours or not each.extras <= ours[each.name]:
            ours.setdefault(each.name, set()).update(each.extras)
            queue += declared(each.name, each.extras)
    return ours, sorted(set(others))


def wheel_of(package: str) -> str:
    return str(next(WHEELS.glob(f"{package.replace('-', '_')}-*.whl")))


def with_extras(name: str, extras: set[str]) -> str:
    return f"{name}[{','.join(sorted(extras))}]" if extras else name


class Environment:
    """A virtual environment: wheels of this repository, by path, and what they declare."""

    def __init__(self, name: str, *requirements: str) -> None:
        self.ours, others = closure(list(requirements))
        self.named = [r for r in requirements if Requirement(r).name not in PROJECTS]
        self.stamp = ROOT / ".nox" / name / "installed.txt"
        ours = [with_extras(*each) for each in sorted(self.ours.items())]
        self.content = "\n".join([CONSTRAINTS.read_text(), *ours, *others])

    @property
    def unchanged(self) -> bool:
        """True if the environment on disk was made for the same requirements: nox may keep it."""
        return self.stamp.is_file() and self.stamp.read_text() == self.content

    def install(self, session: nox.Session) -> None:
        if self.unchanged:
            wheels = [wheel_of(package) for package in self.ours]
            session.install("--force-reinstall", "--no-deps", *wheels)
            return
        wheels = [with_extras(wheel_of(p), extras) for p, extras in self.ours.items()]
        session.install("-c", str(CONSTRAINTS), *wheels, *self.named)
        session.run("python", "-m", "pip", "check", silent=True)
        self.stamp.write_text(self.content)


def sources_digest(package: str) -> str:
    """Changes when a file of the package does, or the interpreter that wheels are built for."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {sys.platform}".encode())
    folder = ROOT / "packages" / package
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        made = path.suffix in (".so", ".pyc", ".pyd") or "build" in name.parts
        if path.is_file() and not made and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@nox.session(reuse_venv=True)
def build(session: nox.Session) -> None:
    """Build every package's sdist, and from that its wheel, into .whl; only what changed."""
    session.install("-c", str(CONSTRAINTS), "build")
    WHEELS.mkdir(exist_ok=True)
    for package in PACKAGES:
        stamp, digest = WHEELS / f"{package}.sources", sources_digest(package)
        if stamp.is_file() and stamp.read_text() == digest:
            session.log(f"{package}: unchanged since its wheel was built")
            continue
        stamp.unlink(missing_ok=True)
        for old in WHEELS.glob(f"{package.replace('-', '_')}-*"):
            old.unlink()
        session.run(
            "python",
            "-m",
            "build",
            "--outdir",
            str(WHEELS),
            f"packages/{package}",
            env={"PIP_CONSTRAINT": str(CONSTRAINTS)},
            silent=True,
        )
        stamp.write_text(digest)


# --- tests


def summary() -> str:
    """One line a test run of this nox call, and a total, from the junit files."""
    total = dict.fromkeys(("tests", "failures", "errors", "skipped", "gpu"), 0)
    seconds, lines = 0.0, []
    for path in sorted(RESULTS.glob("tests-*.xml")):
        suites = ET.parse(path).getroot().findall("testsuite")
        counts = {key: sum(int(s.get(key, 0)) for s in suites) for key in list(total)[:4]}
        skips = [skip.get("message", "") for s in suites for skip in s.iter("skipped")]
        counts["gpu"] = sum("CUDA device" in message for message in skips)
        took = sum(float(s.get("time", 0)) for s in suites)
        lines.append(f"{path.stem:20} {_words(counts)} in {took:.0f} s")
        total = {key: total[key] + counts[key] for key in total}
        seconds += took
    lines.append(f"{total['gpu']} gpu tests could not run on this machine")
    lines.append(f"==== {_words(total)} in {seconds:.0f} s ====")
    return "\n".join(lines) if total["tests"] else "==== no test was run ===="


def _words(counts: dict[str, int]) -> str:
    bad = counts["failures"] + counts["errors"]
    passed = counts["tests"] - bad - counts["skipped"]
    return f"{passed} passed, {bad} failed, {counts['skipped']} skipped"


UNFINISHED = '<testsuites><testsuite tests="1" errors="1"/></testsuites>'


def run_tests(session: nox.Session, environment: Environment, folder: str) -> None:
    """pytest from wheels: the sources are not on the path. A crash counts as one failure."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    junit = RESULTS / f"{session.name}.xml"
    junit.write_text(UNFINISHED)
    environment.install(session)
    clean = {"PYTHONPATH": None, "AO_KERNELS": None}
    session.run("pytest", folder, f"--junitxml={junit}", *session.posargs, env=clean)


def register_tests(package: str) -> None:
    environment = Environment(f"tests-{package}", TESTED[package])

    def session_function(session: nox.Session) -> None:
        run_tests(session, environment, f"packages/{package}/tests")

    session_function.__doc__ = f"Test {package} alone, from its wheel with what it declares."
    name = f"tests-{package}"
    nox.session(session_function, name=name, requires=["build"], reuse_venv=environment.unchanged)


for _package in PACKAGES:
    register_tests(_package)

TOGETHER = Environment("tests-together", *TESTED.values(), "matplotlib")  # for tests of pictures


@nox.session(name="tests-together", requires=["build"], reuse_venv=TOGETHER.unchanged)
def tests_together(session: nox.Session) -> None:
    """Run tests/: what needs two packages or more, with all wheels installed."""
    try:
        run_tests(session, TOGETHER, "tests")
    finally:
        print(summary(), flush=True)


@nox.session(venv_backend="none", requires=[*(f"tests-{p}" for p in PACKAGES), "tests-together"])
def tests(session: nox.Session) -> None:
    """Run every test: each package alone, then tests/ with all of them."""
    session.log("all packages passed")


@nox.session(name="summary", venv_backend="none")
def print_summary(session: nox.Session) -> None:
    """Print again how the last test run ended."""
    print(summary(), flush=True)


@nox.session(venv_backend="none")
def gpu(session: nox.Session) -> None:
    """Run the gpu tests of every package in the current interpreter, on the sources."""
    for folder in [*(f"packages/{p}/tests" for p in PACKAGES), "tests"]:
        session.run(
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "gpu",
            folder,
            *session.posargs,
            env={"PYTHONPATH": SOURCES},
            external=True,
            success_codes=[0, 5],
        )


@nox.session(venv_backend="none")
def tune(session: nox.Session) -> None:
    """Measure the kernels on this GPU and write the table that it dispatches by; `-- --help`."""
    script = "packages/ao-kernels/benchmarks/tune.py"
    env = {"PYTHONPATH": SOURCES, "AO_KERNELS": None}
    session.run(sys.executable, script, *session.posargs, env=env, external=True)


# --- checks


@nox.session(reuse_venv=True)
def lint(session: nox.Session) -> None:
    """ruff check and ruff format --check; `nox -s lint -- --fix` repairs what it can."""
    session.install("-c", str(CONSTRAINTS), "ruff")
    if "--fix" in session.posargs:
        session.run("ruff", "check", "--fix", ".")
        session.run("ruff", "format", ".")
        return
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", "--diff", ".")


@nox.session(reuse_venv=True)
def types(session: nox.Session) -> None:
    """mypy on the sources of every package, against the real torch and Transformers."""
    _, third_party = closure(list(TESTED.values()))
    session.install("-c", str(CONSTRAINTS), "mypy", *third_party)
    sources = ":".join(f"packages/{p}/src" for p in PACKAGES)
    modules = [flag for p in PACKAGES for flag in ("-p", p.replace("-", "_"))]
    session.run("mypy", *modules, *session.posargs, env={"MYPYPATH": sources})


DOCS = Environment("docs", *TESTED.values())


@nox.session(requires=["build"], reuse_venv=DOCS.unchanged)
def docs(session: nox.Session) -> None:
    """Run the doctests and the code of every README; fail if docs/support.md is stale."""
    DOCS.install(session)
    files = [f"tests/test_{name}.py" for name in ("doctests", "readme", "support")]
    session.run("pytest", *files, *session.posargs, env={"PYTHONPATH": None})


SMOKE = """
import importlib.metadata, sys, {modules}
for name in {packages!r}:
    module = sys.modules[name.replace("-", "_")]
    assert "site-packages" in module.__file__, module.__file__
    assert module.__version__ == importlib.metadata.version(name)
    print(name, module.__version__)
"""


@nox.session(requires=["build"])
def wheels(session: nox.Session) -> None:
    """Install from the wheels alone; build and test a copied package (default ao-quant)."""
    copied = session.posargs[0] if session.posargs else "ao-quant"
    ours, third_party = closure(["ao-quant"])
    session.install("-c", str(CONSTRAINTS), *third_party)
    session.install("--no-index", "--find-links", str(WHEELS), "ao-quant")
    smoke(session, sorted(ours))
    rest = [OURS, *(p for p in PACKAGES if p not in closure([OURS])[0])]  # such as ao-optim
    session.install("-c", str(CONSTRAINTS), "--find-links", str(WHEELS), *rest)
    smoke(session, PACKAGES)

    elsewhere = Path(session.create_tmp()) / "elsewhere"
    shutil.rmtree(elsewhere, ignore_errors=True)
    skip = shutil.ignore_patterns("*.so", "__pycache__", "build", ".*")
    shutil.copytree(ROOT / "packages" / copied, elsewhere / copied, ignore=skip)
    session.chdir(elsewhere)
    session.run(
        "python",
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "-w",
        "built",
        f"./{copied}",
        env={"PIP_CONSTRAINT": str(CONSTRAINTS)},
    )
    wheel = next(Path("built").glob("*.whl"))
    session.install("-c", str(CONSTRAINTS), "--find-links", str(WHEELS), f"{wheel}[test]")
    session.install("--force-reinstall", "--no-deps", str(wheel))
    session.run("pytest", f"{copied}/tests", env={"PYTHONPATH": None})


def smoke(session: nox.Session, packages: list[str]) -> None:
    modules = ", ".join(p.replace("-", "_") for p in packages)
    session.run("python", "-c", SMOKE.format(modules=modules, packages=packages))


# --- running it

MODEL_TOOLS = ("transformers", "accelerate", "gguf", "matplotlib")  # GGUF needs accelerate
OURS = "ao-quant[hf]" if "ao-hf" in PROJECTS else "ao-quant"
DEMO = Environment("demo", OURS, *MODEL_TOOLS)
BENCH = Environment("bench", OURS, *MODEL_TOOLS)


@nox.session(requires=["build"], reuse_venv=DEMO.unchanged)
def demo(session: nox.Session) -> None:
    """Quantize a real language model to several formats; a table and a picture in demo-output."""
    DEMO.install(session)
    session.run("python", "benchmarks/demo.py", *session.posargs, env={"PYTHONPATH": None})


@nox.session(requires=["build"], reuse_venv=BENCH.unchanged)
def bench(session: nox.Session) -> None:
    """Run an end-to-end benchmark: `nox -s bench -- decode`; without a name, list them."""
    names = [p.stem for p in sorted(ROOT.glob("benchmarks/*.py"))]
    if not session.posargs or session.posargs[0] not in names:
        session.error(f"give the name of a benchmark: {', '.join(names)}")
    BENCH.install(session)
    name, *arguments = session.posargs
    session.run("python", f"benchmarks/{name}.py", *arguments, env={"PYTHONPATH": None})


@nox.session(reuse_venv=True)
def peer(session: nox.Session) -> None:
    """Time llama.cpp on the same model, in its own environment, for `bench -- decode` to show."""
    session.install("-c", str(CONSTRAINTS), "xllamacpp")
    session.run("python", "benchmarks/llama_cpp.py", *session.posargs)
