"""Runs steps of the pipeline, on any machine as in a CI: `python3 deploy/pipeline/run.py pipeline`, or `make pipeline`.

The standard library only, so that a machine that builds images needs no virtual environment. What a step runs is
decided in steps.py, what was told in order.py; here it is done. Steps may be given one by one: what the later ones need
of the earlier is kept in dist/pipeline. The exit status is 0, 1 when a step failed, 2 when something is wrong with what
was told.
"""  # noqa: INP001 - a script for people, no package

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import steps
from order import Order, Refused, image_name, image_tag, read_order
from report import Result, State, markdown, outputs, size_words

ROOT: Final = Path(__file__).resolve().parents[2]
OUT: Final = ROOT / "dist" / "pipeline"
KEPT: Final = OUT / "state.json"
TOOLS: Final = ("helm", "syft", "grype", "trivy")
TOLD: Final = {"summary": markdown, "outputs": outputs}
"""Words that only print what is kept."""


def say(text: str) -> None:
    """A line of the pipeline's own, among those of its commands."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def git(*words: str) -> str:
    """What git says; nothing outside a repository."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def stage_model(order: Order) -> tuple[Order, str]:
    """The order with the model's digest, and where the builder finds the file; an address stays as it is.

    Raises:
        Refused: neither a file nor an address, or a file of another digest.
    """
    if not order.model:
        return order, ""
    file = Path(order.model).expanduser()
    if not file.is_file():
        if ":" not in order.model:
            raise Refused(f"MODEL={order.model}: there is no such file, and it is no address")
        return order, order.model
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if order.model_sha256 not in ("", digest):
        raise Refused(f"MODEL={order.model} has the SHA-256 {digest}, and MODEL_SHA256 says {order.model_sha256}")
    order = replace(order, model_sha256=digest)
    if file.resolve().parent == ROOT / "models" and file.suffix == ".gguf":
        return order, f"models/{file.name}"
    return order, steps.staged_name(file, order)


def copy_model(order: Order, staged: str) -> None:
    """Bring the model's file into the build context, where it is not there yet."""
    target = ROOT / staged
    if ":" in staged or not staged or target.resolve() == Path(order.model).expanduser().resolve():
        return
    target.parent.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(Path(order.model).expanduser().resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(Path(order.model).expanduser(), target)


def found_programs(order: Order) -> dict[str, str]:
    """Programs of the steps that are here, and where."""
    beside = str(ROOT / ".venv" / "bin" / "stoker")
    wanted = {"docker": order.docker, **{name: name for name in TOOLS}, "stoker": beside}
    found = {name: path for name, program in wanted.items() if (path := shutil.which(program))}
    if "stoker" not in found and (path := shutil.which("stoker")):
        found["stoker"] = path
    return found


def look_around(order: Order, staged: str, programs: dict[str, str], state: State) -> steps.Here:
    """Everything that the steps' decisions need."""
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    revision = git("rev-parse", "HEAD")
    dirty = bool(revision and git("status", "--porcelain"))
    told = version[1] if version else "0"
    kubeconfigs = (order.kubeconfig or "~/.kube/config").split(os.pathsep)
    return steps.Here(
        version=told,
        revision=revision,
        created=git("show", "--no-patch", "--format=%cI", "HEAD"),
        programs=frozenset(programs),
        image=image_name(order, image_tag(order, told, revision, dirty=dirty)),
        model=staged,
        pushed=state.pushed,
        has_sbom=(ROOT / steps.SBOM).is_file(),
        has_cluster=any(Path(path).expanduser().is_file() for path in kubeconfigs),
    )


def shown(command: Sequence[str]) -> str:
    """A command for people; what follows a question mark in an address may be a password, and is left out."""
    return re.sub(r"(://[^\s'?]*)\?[^\s']*", r"\1?...", shlex.join(command))


def run(command: Sequence[str], programs: dict[str, str], *, capture: bool = False) -> str:
    """Run one command, and return its standard output where it is wanted.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    say(f"$ {shown(command)}")
    words = [programs.get(command[0], command[0]), *command[1:]]
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    done = subprocess.run(
        words, cwd=ROOT, env=environment, check=True, text=True, stdout=subprocess.PIPE if capture else None
    )
    return done.stdout or ""


def pushed_reference(order: Order, here: steps.Here, programs: dict[str, str]) -> str:
    """The image by its digest in the registry; by its name where it was loaded without one."""
    if not order.registry:
        return here.image
    found = run(
        (order.docker, "image", "inspect", '--format={{join .RepoDigests " "}}', here.image), programs, capture=True
    )
    repository = here.image.rpartition(":")[0]
    digest = next((one.partition("@")[2] for one in found.split() if one.partition("@")[0] == repository), "")
    if not digest:
        raise Refused(f"{here.image} was pushed, and Docker does not know its digest there")
    return f"{here.image}@{digest}"


def do(name: str, order: Order, here: steps.Here, programs: dict[str, str], state: State) -> Result:
    """One step, with what it leaves for later ones.

    Raises:
        Refused: it cannot be done here; the message says what is missing.
        subprocess.CalledProcessError: one of its commands failed.
    """
    work = steps.STEPS[name](order, here)
    if work.skipped:
        if name in order.wanted:
            raise Refused(f"REQUIRE={order.require}, and {work.skipped}")
        return Result(name, "skipped", note=work.skipped)
    OUT.mkdir(parents=True, exist_ok=True)
    if name == "image":
        copy_model(order, here.model)
    said = [run(command, programs, capture=name == "size") for command in work.commands]
    note = ""
    if name == "image":
        state.image, state.pushed, state.parts = here.image, "", {}
        state.model = " ".join(
            filter(None, (order.model and order.model_name, order.model_version, order.model_sha256))
        )
        (ROOT / steps.SBOM).unlink(missing_ok=True)
    elif name == "size":
        state.parts = steps.parts_of(said[0])
        note = size_words(state.parts)
    elif name == "push":
        state.pushed = note = pushed_reference(order, here, programs)
    return Result(name, "ok", note=note)


def attempt(name: str, order: Order, staged: str, programs: dict[str, str], state: State) -> Result:
    """One step, whatever becomes of it; said and kept."""
    say(f"==> {name}")
    begun = time.monotonic()
    try:
        result = do(name, order, look_around(order, staged, programs, state), programs, state)
    except Refused as refused:
        result = Result(name, "failed", note=str(refused))
    except subprocess.CalledProcessError as failed:
        result = Result(
            name, "failed", note=f"{failed.cmd[0].rpartition('/')[2]} ended with status {failed.returncode}"
        )
    except KeyboardInterrupt:
        result = Result(name, "interrupted")
    result.seconds = round(time.monotonic() - begun, 1)
    state.add(result)
    state.write(KEPT)
    say(f"<== {name}: {result.outcome}" + (f", {result.note}" if result.note else ""))
    return result


def dry_run(names: Sequence[str], order: Order, staged: str, programs: dict[str, str]) -> int:
    """Say what would be run, and run nothing."""
    here = look_around(order, staged, programs, State())
    where = here.image + ("@sha256:..." if order.registry else "")
    here = replace(here, pushed=where if order.registry or order.image_loader else "")
    for name in names:
        try:
            work = steps.STEPS[name](order, here)
            told = [f"skipped, {work.skipped}"] if work.skipped else [shown(command) for command in work.commands]
        except Refused as refused:
            told = [f"would fail: {refused}"]
        say("\n".join(f"{name:8}{line}" for line in told))
    return 0


def main(words: Sequence[str]) -> int:
    """Run the steps that are named; the first that fails is the last."""
    if len(words) == 1 and words[0] in TOLD:
        sys.stdout.write(TOLD[words[0]](State.read(KEPT)))
        return 0
    names = steps.PIPELINE if list(words) == ["pipeline"] else tuple(words)
    unknown = [name for name in names if name not in steps.STEPS]
    if unknown or not names:
        say(f"usage: run.py pipeline | {' | '.join([*steps.STEPS, *TOLD])}")
        return 2
    try:
        order, staged = stage_model(read_order(os.environ, steps.STEPS))
    except Refused as refused:
        sys.stderr.write(f"pipeline: {refused}\n")
        return 2
    programs = found_programs(order)
    if order.dry_run:
        return dry_run(names, order, staged, programs)
    state = State.read(KEPT) if len(names) == 1 else State()
    for name in names:
        if attempt(name, order, staged, programs, state).outcome in ("failed", "interrupted"):
            break
    if len(names) > 1:
        (OUT / "summary.md").write_text(markdown(state), encoding="utf-8")
        say(markdown(state))
    outcomes = {one.step: one.outcome for one in state.results}
    return 0 if all(outcomes.get(name) in ("ok", "skipped") for name in names) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
