"""What is checked, and how: ``nox`` runs the default sessions, ``nox -s NAME`` one of them.

Every session runs in the environment that nox itself runs in: torch is far too large to install
once for each. Make that environment with the README's test command.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "layers", "tests"]
nox.options.error_on_missing_interpreters = True

#: What compares with diffusers or breaks copies of the package, and covers no flow.
BESIDE = (
    "tests/codecs",
    "tests/fast",
    "tests/latents",
    "tests/test_families.py",
    "tests/test_hazards.py",
    "tests/test_plan.py",
    "tests/test_stream_pipeline.py",
)

#: The flow modules, whose every branch is tested.
FLOW = ("_pipeline", "_events", "stages", "_stream", "_merged", "_tee")

#: Tests that hold streams to what diffusers gives.
SAME_AS_DIFFUSERS = (
    "tests/test_equivalence.py",
    "tests/test_families.py",
    "tests/test_stream_pipeline.py",
)

#: What the project says of itself.
PROJECT = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text("utf-8"))["project"]

#: Interpreters that it names, beside the one that runs nox.
PYTHONS = [
    version
    for each in PROJECT["classifiers"]
    if "." in (version := each.removeprefix("Programming Language :: Python :: "))
    and "::" not in version
    and version != "{}.{}".format(*sys.version_info[:2])
]

#: What may differ between interpreters: loops, threads, frames of errors, interrupts, exits.
QUICK = (
    "tests/sinks/test_damage.py",
    "tests/sinks/test_resume.py",
    "tests/sinks/test_stills_writers.py",
    "tests/test_av.py",
    "tests/test_caller.py",
    "tests/test_cancellation.py",
    "tests/test_collect.py",
    "tests/test_concurrency.py",
    "tests/test_events.py",
    "tests/test_exit.py",
    "tests/test_locks.py",
    "tests/test_loop_thread.py",
    "tests/test_memory.py",
    "tests/test_overlap.py",
    "tests/test_pipeline.py",
    "tests/test_progress.py",
    "tests/test_recipe.py",
    "tests/test_resume.py",
    "tests/test_spans.py",
    "tests/test_stages.py",
    "tests/test_stream.py",
    "tests/test_stress.py",
    "tests/test_supervisor.py",
    "tests/test_tee.py",
    "tests/test_testing.py",
    "tests/test_threads.py",
    "tests/test_turns.py",
)

#: What the oldest diffusers needs beside it: it cannot be imported with transformers 5, and some
#: of its pipelines not without ftfy.
THEN = ("transformers<5", "ftfy")

#: Warnings of old releases that are not ours, and that the newest do not give.
OLD_NOISE = ("CUDA is not available", "__array__ implementation doesn't accept a copy")


def module(session: nox.Session, *args: str, env: dict[str, str] | None = None) -> None:
    """Run ``python -m`` with the interpreter that runs nox, on PATH or not."""
    session.run(sys.executable, "-m", *args, env=env, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    module(session, "ruff", "check")
    module(session, "ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    module(session, "mypy")


@nox.session
def layers(session: nox.Session) -> None:
    """Check that imports go down only."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    session.run(sys.executable, "-c", code, external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests (the examples among them); the flow modules must be covered entirely.

    Those that cover no flow run beside the others, in a process of their own: tests keep torch to
    one thread, so two cores do twice as much.
    """
    if session.posargs:  # a part of the tests covers a part of the code
        module(session, "coverage", "run", "-m", "pytest", *session.posargs)
        return
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *BESIDE]
    with tempfile.TemporaryFile("w+") as printed:
        with subprocess.Popen(  # noqa: S603  # this interpreter, our own tests
            command, stdout=printed, stderr=subprocess.STDOUT
        ) as beside:
            try:
                skipped = [f"--ignore={path}" for path in BESIDE]
                module(session, "coverage", "run", "-m", "pytest", *skipped)
            except BaseException:
                beside.terminate()
                raise
        printed.seek(0)
        session.log("%s", printed.read())
    if beside.returncode:
        session.error(f"{shlex.join(command)} failed with exit code {beside.returncode}")
    flow = ",".join(f"streamvae/{name}.py" for name in FLOW)
    module(session, "coverage", "report", f"--include={flow}", "--fail-under=100")


@nox.session
def oldest(session: nox.Session) -> None:
    """Test walks, pipelines and equivalence with the oldest diffusers that pyproject.toml admits.

    It and what it was released with go into a folder ahead of the environment's own packages.
    """
    floor = next(each for each in PROJECT["dependencies"] if each.startswith("diffusers>="))
    with tempfile.TemporaryDirectory(prefix="streamvae-oldest-") as folder:
        install = ("pip", "install", "-q", "--target", folder, *THEN)
        module(session, *install, floor.replace(">=", "=="))
        tests = session.posargs or ("tests/codecs", "tests/latents", *SAME_AS_DIFFUSERS)
        quiet = (option for noise in OLD_NOISE for option in ("-W", f"ignore:{noise}"))
        module(session, "pytest", *quiet, *tests, env={"PYTHONPATH": folder})


def interpreter(version: str) -> str | None:
    """Find an interpreter of ``version`` that runs, on PATH or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = [shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python")]
    for path in filter(None, found):
        asked = (str(path), "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
        # pyenv's shims are there also for what is not installed.
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603
        if answer.stdout.strip() == version:
            return str(path)
    return None


def on_another_python(version: str) -> None:
    """Add the session that tests the flow on Python ``version``, in an environment of its own."""

    @nox.session(name=f"flow-{version}")
    def flow(session: nox.Session) -> None:
        """Test the flow on another interpreter, where it is installed."""
        python = interpreter(version)
        if python is None:
            session.skip(f"there is no Python {version}")
        environment = Path(".nox", f"flow-{version}")
        own = str(environment / "bin" / "python")
        if not environment.is_dir():
            session.run(python, "-m", "venv", str(environment), external=True)
        extras = ".[video,zarr,live,plots,dev]"
        install = ("pip", "install", "-q", "-c", "constraints.txt", "-e", extras)
        session.run(own, "-m", *install, external=True)
        tests = session.posargs or QUICK
        session.run(own, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, external=True)


for each in PYTHONS:
    on_another_python(each)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    if not Path("docs", "conf.py").is_file():
        session.skip("there is no docs/ to build")
    install = ("pip", "install", "-q", "-c", "constraints.txt", "-e", ".[docs]")
    module(session, *install)
    module(session, "sphinx", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks that need no GPU: streams, with options behind ``--``, then sinks."""
    session.run(sys.executable, str(Path("benchmarks", "cpu.py")), *session.posargs, external=True)
    session.run(sys.executable, str(Path("benchmarks", "sinks_cpu.py")), external=True)


@nox.session
def cuda(session: nox.Session) -> None:
    """Run the device tests on a machine with CUDA; a missing device fails instead of skipping."""
    module(session, "pytest", "tests/device", *session.posargs, env={"STREAMVAE_REQUIRE_CUDA": "1"})
