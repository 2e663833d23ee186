"""The command line: list, claims, new, run, record, sweep, gpu, data, refresh, build."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

from companion.runs.gpu_jobs import BUDGET


class Terminated(KeyboardInterrupt):
    """Raised for SIGTERM and SIGHUP, so that what is running is cleaned up as for Ctrl-C."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command. What stops it is one line on stderr.

    Returns the exit status: 0 if all went well, 1 if a run or the machine failed, 2 for bad
    input, 128 plus the signal's number (130, 143) if it was interrupted or terminated.
    """
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a locale that lacks a letter is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        with _terminable():
            return options.command(options) or 0
    except (ValueError, FileNotFoundError) as error:
        return _stopped(error, 2)
    except (OSError, RuntimeError, ImportError) as error:
        return _stopped(error, 1)
    except Terminated as signalled:
        return _stopped("terminated; what was finished before is as it was", signalled.args[0])
    except KeyboardInterrupt:
        return _stopped("interrupted; what was finished before is as it was", 130)


def _stopped(error: object, status: int) -> int:
    if isinstance(error, BrokenPipeError):  # as after `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        error = f"{os.fspath(error.filename)}: {error.strerror}"
    print(f"companion: {error}", file=sys.stderr)
    return status


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Terminated inside, unless they are handled or ignored already."""

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once: the clean-up is not to be cut short
        raise Terminated(128 + number)

    taken = []
    if threading.current_thread() is threading.main_thread():
        taken = [
            s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is signal.SIG_DFL
        ]
    try:
        for number in taken:
            signal.signal(number, stop)
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _place(text: str) -> Path:
    """A path among the options; ~ is the home folder, also where the shell leaves it."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # of nobody
        return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="companion", description="Papers as notebooks, every claim checked."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add = commands.add_parser("list", help="the chapters and how their claims came out")
    add.set_defaults(command=_list)

    add = commands.add_parser("claims", help="what the papers claim, and the bounds; runs nothing")
    add.set_defaults(command=_claims)
    add.add_argument("papers", nargs="*", metavar="PAPER", help="default: all")

    add = commands.add_parser("new", help="write all files of a new chapter, which pass the tests")
    add.set_defaults(command=_new)
    add.add_argument("paper", help="name of its module, such as lottery_ticket")
    add.add_argument("--title", default="A title")
    add.add_argument("--authors", default="First Author and Second Author")
    add.add_argument("--year", help="default: that of the arXiv number")
    add.add_argument("--arxiv", default="0000.00000", help="number, such as 1803.03635")

    add = commands.add_parser("run", help="run a copy of a chapter with your parameters")
    add.set_defaults(command=_run)
    add.add_argument(
        "notebook", metavar="CHAPTER", help="its name, such as snip, or the path of a notebook"
    )
    add.add_argument("-o", "--output", type=_place, help="default: runs/CHAPTER.ipynb")
    _add_parameters(add)

    add = commands.add_parser(
        "record", help="run a chapter's code without Jupyter and keep its result"
    )
    add.set_defaults(command=_record)
    add.add_argument("notebook", metavar="CHAPTER", help="its name, such as snip")
    one_of = add.add_mutually_exclusive_group(required=True)
    one_of.add_argument("--name", help="name of the record, such as mnist")
    one_of.add_argument(
        "--exercise", metavar="N", help="keep what the answer to exercise N runs, such as 4 or 1b"
    )
    add.add_argument("--out", type=_place, help="folder; default: book/recorded/CHAPTER")
    add.add_argument("--script", action="store_true", help="only print the code cells as a script")
    _add_parameters(add)

    add = commands.add_parser("sweep", help="run a chapter over a grid of parameters, on Dask")
    add.set_defaults(command=_sweep)
    add.add_argument(
        "notebook", metavar="CHAPTER", help="its name, such as snip, or the path of a notebook"
    )
    add.add_argument(
        "-g", nargs=2, action="append", default=[], metavar=("NAME", "VALUES"),
        help="a parameter and the list of its values, such as '[0, 1, 2]'; all are combined",
    )  # fmt: skip
    _add_parameters(add)
    add.add_argument("--out", type=_place, help="folder of the results; default: runs/CHAPTER")
    add.add_argument("--scheduler", default="", metavar="ADDRESS", help="a Dask scheduler that is there, such as tcp://10.0.0.1:8786; default: a local cluster")  # fmt: skip
    for name, what in (
        ("ca", "certificates of the authorities that the sweep trusts"),
        ("cert", "the sweep's certificate"),
        ("key", "its key, without a passphrase"),
    ):
        add.add_argument(f"--tls-{name}", default="", metavar="FILE", help=f"for a scheduler at tls://: {what} (PEM)")  # fmt: skip
    add.add_argument("--workers", default="0", help="how many runs at once on this machine; default: one per GPU, or one per core")  # fmt: skip
    add.add_argument("--threads", default="1", help="threads of one run; default: 1")
    add.add_argument("--time-limit", default="0", metavar="SECONDS", help="a run that takes longer has failed; default: none")  # fmt: skip
    add.add_argument("--keep", metavar="NAME", help="keep the table in book/recorded/CHAPTER/sweeps for the book")  # fmt: skip
    add.add_argument("--values", action="append", default=[], metavar="PATTERN", help="with --keep: also the recorded lists and mappings of such a name")  # fmt: skip

    add = commands.add_parser("gpu", help="run what a GPU machine should show, within a budget")
    add.set_defaults(command=_gpu)
    add.add_argument("--budget", default=f"{BUDGET}", metavar="SECONDS", help=f"default: {BUDGET}")
    add.add_argument("--out", type=_place, default=Path("runs/gpu"), metavar="DIR", help="folder of the results; what is done there is not repeated; default: runs/gpu")  # fmt: skip
    add.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these jobs, or those of a chapter, or tiny")  # fmt: skip
    add.add_argument("--device", default="cuda", help="default: cuda; cpu, to try it")
    add.add_argument("--data", type=_place, metavar="DIR", help="what --prepare made; default: the data root")  # fmt: skip
    add.add_argument("--list", action="store_true", help="only print the jobs")
    add.add_argument("--prepare", type=_place, metavar="DIR", help="only pack the data sets that the jobs need, to carry them to a machine without a network")  # fmt: skip

    add = commands.add_parser("data", help="which data sets are there, and where the others go")
    add.set_defaults(command=_data)
    add.add_argument("--root", default="", help="default: $COMPANION_DATA, else the user's cache")
    add.add_argument("--fetch", metavar="NAME", help="download this set")

    add = commands.add_parser("refresh", help="rerun and store the notebooks whose code changed")
    add.set_defaults(command=_refresh)
    add.add_argument(
        "notebooks",
        nargs="*",
        metavar="CHAPTER",
        help="these, changed or not; default: all that changed",
    )
    add.add_argument("--jobs", type=int, default=2, help="how many at once")
    add.add_argument(
        "--against",
        metavar="COMMIT",
        help="also run them with that commit's code, and say where results differ",
    )

    add = commands.add_parser("build", help="build the book strictly into _build/html")
    add.set_defaults(command=_build)
    add.add_argument("--force", action="store_true", help="also when nothing changed")
    add.add_argument(
        "--pdf",
        action="store_true",
        help="also print it into _build/paper-companion.pdf (Chromium)",
    )
    return parser


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a parameter; the value is read as YAML, so lists and true work",
    )  # fmt: skip
    parser.add_argument(
        "-f", type=_place, metavar="FILE", help="a YAML file of parameters; -p takes precedence"
    )


def _parameters(options: argparse.Namespace) -> dict[str, Any]:
    """The values of -f and -p, each read by the type that the notebook declares."""
    from companion.runs import chapters, given

    kinds = chapters.declared(chapters.find(options.notebook))
    values = {
        name: given.typed(value, kinds.get(name, object))
        for name, value in (given.read_file(options.f) if options.f else {}).items()
    }
    named = [name for name, _ in options.p]
    for name, text in options.p:
        if named.count(name) > 1:
            raise ValueError(f"-p {name!r}: given twice")
        _not_too_long("-p", name, text)
        values[name] = given.argument(text, kinds.get(name, object))
    return values


def _not_too_long(option: str, name: str, text: str) -> None:
    from companion.runs import given

    if len(text) > given.LIMIT:
        raise ValueError(
            f"{option} {name[:99]!r}: expected at most {given.LIMIT:,} characters, got {len(text):,}"
        )


def _list(_: argparse.Namespace) -> None:
    from collections import Counter

    from companion.notebook.claims import load_claims, papers
    from companion.runs import chapters
    from companion.runs.fingerprint import is_current, is_untouched
    from companion.runs.record import Run

    for stem in chapters.stems():
        path = chapters.find(stem)
        notebook = chapters.read(path)
        title = next(line for cell in notebook["cells"] for line in cell["source"].splitlines())
        run = Run.of_values(stem, "stored", chapters.recorded_values(notebook))
        stated = load_claims(stem) if stem in papers() else {}
        marks = "" if is_current(path) else "  (outputs older than the code: make notebooks)"
        if not is_untouched(path):
            marks = f"  (outputs edited: make notebooks NB={stem})"
        print(f"{stem:24} {title.lstrip('# ')}{marks}")
        for kind, told in (
            ("paper", "of the paper"),
            ("control", "controls"),
            ("derivation", "derived"),
        ):
            counts = Counter(
                verdict.outcome
                for id, verdict in run.claims.items()
                if id in stated and stated[id].kind == kind
            )
            if counts:
                told += ": " + ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))
                print(f"{'':24} {told}")


def _claims(options: argparse.Namespace) -> None:
    from companion.notebook.claims import load_claims, papers

    for paper in options.papers or papers():
        print(paper)
        for claim in load_claims(paper).values():
            print(f"  {claim.id:4} {claim.says} ({claim.kind}; {claim.where})")
            for line in _statement(claim):
                print(f"         {line}")


def _statement(claim) -> Iterator[str]:
    """What a reviewer asks of a claim, a line each."""
    for value in claim.reported:
        yield f"paper: {value}"
    for quantity in claim.quantities.values():
        for profile in quantity.bounds:
            where = "" if len(quantity.bounds) == 1 else f" (profile {profile})"
            yield f"bound: {quantity.means}: {quantity.wanted(profile)}{where}"
    if claim.needs:
        yield f"needs: {', '.join(f'{name} {wanted}' for name, wanted in claim.needs.items())}"
    where = "every profile" if claim.asserted is None else ", ".join(claim.asserted) or "none"
    if claim.depends is not None:
        where += f", unless one of {', '.join(claim.depends)} is changed" if claim.depends else ", whatever is changed"  # fmt: skip
    yield f"asserted in: {where}" + ("" if claim.expected else "; known not to reproduce")
    for settled in claim.settled:
        when = "before" if settled.before_looking else "after"
        yield f"settled: {settled.on}, {when} a result was seen" + (
            settled.why and f": {settled.why}"
        )


def _new(options: argparse.Namespace) -> int:
    from companion.runs import chapters
    from companion.runs.new import new_paper

    chapters.stems()  # only in a checkout
    year = None if options.year is None else _number("year", options.year, int, 1900, 2100)
    written = new_paper(options.paper, options.title, options.authors, options.arxiv, year)
    written += chapters.write_preset_files(chapters.find(options.paper))
    for path in written:
        print(os.path.relpath(path))
    options.notebooks, options.jobs = [options.paper], 1
    print(f"running the example once; then replace it: make notebooks NB={options.paper}")
    _refreshed(options, None)
    return 0


def _run(options: argparse.Namespace) -> None:
    from companion.runs import chapters, executor

    path = chapters.find(options.notebook)
    given = _parameters(options)
    chapters.validate(path, given, here=True)
    output = options.output or Path("runs") / path.name
    _check_output(output, path)

    outcome = executor.run(path, given, output)
    if outcome.error:
        raise RuntimeError(f"{outcome.error} (see {output})")
    from companion.notebook.checking import Table
    from companion.notebook.claims import load_claims, papers
    from companion.runs.record import Run

    done = Run.of_values(path.stem, "run", chapters.recorded_values(chapters.read(output)))
    if path.stem in papers() and done.claims:
        print(Table(load_claims(path.stem), done.claims.values()))
    else:  # a notebook that states its own
        for verdict in done.claims.values():
            print(f"{verdict.id:5} {verdict.outcome}")
    print(f"written to {output}")


def _check_output(output: Path, notebook: Path) -> None:
    """Refuse an output, before the run, that cannot be written or would replace a chapter."""
    from companion.files import check_writable
    from companion.runs import chapters

    stored = [notebook, *chapters.FOLDER.glob("*.ipynb")]
    wrong = ""
    try:
        if "\0" in str(output):  # which to pathlib is a file that is not there
            wrong = "no file can be called that"
        elif output.is_dir() or output.suffix != ".ipynb":
            wrong = "expected a file that ends in .ipynb"
        elif output.exists() and any(output.samefile(chapter) for chapter in stored):
            wrong = "is a chapter itself, and a run is written beside it"
        else:
            output.parent.mkdir(parents=True, exist_ok=True)
            check_writable(output.parent)
            if output.exists() and not os.access(output, os.W_OK):
                wrong = "cannot be written: it is write-protected"
    except (OSError, ValueError) as error:  # ValueError: no name of a file
        wrong = f"cannot be written: {getattr(error, 'strerror', None) or error}"
    if wrong:
        raise ValueError(f"-o {output}: {wrong}")


def _record(options: argparse.Namespace) -> None:
    from companion.runs import chapters
    from companion.runs.executor import script
    from companion.runs.records import EXERCISES, FOLDER, record_answer, record_run

    given = _parameters(options)
    if options.exercise and (given or options.script):
        raise ValueError(f"--exercise {options.exercise}: its answer says what to run; leave -p, -f and --script out")  # fmt: skip
    if options.script:  # for another machine
        path = chapters.find(options.notebook)
        with redirect_stdout(sys.stderr):  # what the check says is not of the script
            chapters.validate(path, given)
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8")  # as Python reads it
        print(script(path, given))
        return
    if options.out:
        _writable("--out", options.out, "new folder")
    folder = options.out or FOLDER / chapters.find(options.notebook).stem
    if options.exercise:
        folder = options.out or folder / EXERCISES
        result = record_answer(options.notebook, options.exercise, options.out)
    else:
        result = record_run(options.name, options.notebook, given, options.out)
    print(f"{result.seconds} s, kept in {os.path.relpath(folder / (result.name + '.json'))}")


def _sweep(options: argparse.Namespace) -> int:
    from companion.runs import chapters

    try:
        import distributed  # noqa: F401
        import pandas  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error}; a sweep needs: pip install 'paper-companion[sweep]'") from None
    from companion.runs import cluster, grid, record, store, sweep

    workers = _number("workers", options.workers, int, 0, 1000)
    threads = _number("threads", options.threads, int, 1, 1000)
    time_limit_s = _number("time-limit", options.time_limit, float, 0, 1e8)
    tls = (options.tls_ca, options.tls_cert, options.tls_key)
    cluster.check_tls(options.scheduler, tls)
    if options.scheduler and workers:
        raise ValueError(f"--workers {workers}: the scheduler at --scheduler has its own workers")
    if options.keep is not None:
        store.check_name(options.keep)
    if options.values and not options.keep:
        raise ValueError("--values: says what --keep keeps; give --keep NAME as well")
    if "" in options.values:
        raise ValueError("--values '': expected the name of a recorded value, * for any text")
    if options.out:
        _writable("--out", options.out, "new folder")
    path = chapters.find(options.notebook)
    axes = {name: _axis(path, name, text) for name, text in options.g}
    if len(axes) < len(options.g) or not axes:
        raise ValueError("-g: expected at least one parameter, and each only once")
    here = not options.scheduler  # the workers of a cluster have their own devices and data
    points = grid.expand(path, axes, _parameters(options), here=here)
    out = options.out or Path("runs") / path.stem
    runs = sweep.sweep(
        path, points, out,
        scheduler=options.scheduler, tls=tls, workers=workers, threads=threads,
        time_limit_s=time_limit_s,
    )  # fmt: skip
    failed = [run for run in runs if run.status == record.FAILED]
    for run in failed:
        print(f"failed: {run.given}: {run.error}")
    print(
        f"{len(runs) - len(failed)} of {len(runs)} runs done; "
        f"the table is {out / 'table.csv'}, the page {out / 'index.html'}"
    )
    if options.keep:
        asked = [
            "companion",
            "sweep",
            chapters.called(path, options.notebook),
            "--keep",
            options.keep,
        ]
        asked += [part for name, text in options.g for part in ("-g", name, text)]
        asked += [part for name, text in options.p for part in ("-p", name, text)]
        asked += ["-f", options.f.as_posix()] if options.f else []
        asked += [part for pattern in options.values for part in ("--values", pattern)]
        kept = store.keep(options.keep, path, runs, shlex.join(asked), values=options.values)
        print(f"kept in {os.path.relpath(kept)}")
    return 1 if failed else 0


def _gpu(options: argparse.Namespace) -> int:
    from companion.runs import gpu

    jobs = gpu.chosen(options.only)
    if options.list:
        print(gpu.listing(jobs))
        return 0
    if options.prepare:
        return _prepare(options.prepare, {name for job in jobs for name in job.data})
    budget_s = _number("budget", options.budget, float, 10, 1e6)
    _writable("--out", options.out, "new folder")
    if options.data and not options.data.is_dir():
        raise ValueError(f"--data {options.data}: expected a folder that --prepare made")
    states = gpu.run(
        jobs, options.out, budget_s=budget_s, device=options.device, data=options.data
    )
    print(f"the results are in {options.out}; for the book: cp -r {options.out}/recorded book/")
    return 1 if any(state.state == gpu.FAILED for state in states.values()) else 0


def _prepare(folder: Path, names: set[str]) -> int:
    from companion.data.root import data_root
    from companion.runs.carry import prepare

    _writable("--prepare", folder, "new folder")
    for name, size in (sizes := prepare(names, data_root(), folder)).items():
        print(f"  {name:14} {size / 1e6:6.1f} MB")
    print(f"{sum(sizes.values()) / 1e6:.1f} MB in {folder}. Carry it with the project, and run there:")  # fmt: skip
    print(f"  PYTHONPATH=src python -m companion gpu --data {folder} --out results")
    return 0


N = TypeVar("N", int, float)


def _number(name: str, text: str, kind: type[N], least: float, most: float) -> N:
    """The value of an option; infinity and what is no number are outside the bounds."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"--{name} {text}: expected {what} from {least:g} to {most:g}")
    return value


def _axis(path: Path, name: str, text: str) -> Any:
    """The list of values of -g, each read by the type that the notebook declares."""
    from companion.runs import chapters, given

    _not_too_long("-g", name, text)
    kind = chapters.declared(path).get(name, object)
    try:
        values = given.read(text)
    except ValueError:
        values = None
    if not isinstance(values, list):
        raise ValueError(
            f"-g {name}: expected a list of values such as '[0, 1, 2]', got {text[:200]}"
        )
    return [given.typed(value, kind) for value in values]


def _writable(option: str, path: Path, what: str) -> None:
    from companion.notebook.outside import OUTSIDE

    if wrong := OUTSIDE[what](str(path)):
        raise ValueError(f"{option} {path}: {wrong}")


def _data(options: argparse.Namespace) -> None:
    from companion.data.catalogue import catalogue
    from companion.data.root import data_root

    root, sets = data_root(options.root), catalogue()
    if options.fetch is not None:
        if options.fetch not in sets:
            raise ValueError(f"--fetch {options.fetch}: expected one of {', '.join(sets)}")
        source = sets[options.fetch]
        download = getattr(source, "download", None)
        if download is None:
            raise ValueError(f"--fetch {options.fetch}: {source.get}")
        download(options.fetch, root)
    print(f"data root: {root}{'' if root.is_dir() else ' (no such folder yet)'}")
    for name, source in sets.items():
        state = source.state(root)
        print(f"  {name:14} {state:10} {source.title}")
        if source.where:
            print(f"  {'':25} in {source.where}/; terms: {source.licence}")
        if state == "incomplete":
            print(f"  {'':25} lacks {', '.join(source.lacking(root))}")
        if state != "there":
            print(f"  {'':25} {source.get}")


def _refresh(options: argparse.Namespace) -> None:
    with ExitStack() as stack:
        tree = None
        if options.against is not None:
            from companion.runs.alike import tree_of

            tree = stack.enter_context(tree_of(options.against))
        _refreshed(options, tree)


def _refreshed(options: argparse.Namespace, tree: Path | None) -> None:
    """Rerun notebooks; compare them with an earlier commit's files, if there are any."""
    from companion.files import check_writable
    from companion.runs import chapters
    from companion.runs.fingerprint import is_current
    from companion.runs.refresh import refresh_all

    if options.notebooks:
        waiting = [chapters.find(name) for name in options.notebooks]
    else:
        every = [chapters.find(stem) for stem in chapters.stems()]
        waiting = [path for path in every if not is_current(path)]
        print(f"{len(every) - len(waiting)} notebooks are current, {len(waiting)} to run")
    jobs = max(1, options.jobs)
    if tree:
        from companion.runs import alike

        alike.check(waiting, tree)
    for path in waiting:
        check_writable(path.parent)
        chapters.write_preset_files(path)
    failures: list[str] = []
    ended = 0

    def tell(path: Path, outcome: float | Exception) -> None:
        nonlocal ended
        ended += 1
        head = f"[{ended}/{len(waiting)}] {path.name}"
        if isinstance(outcome, Exception):
            failures.append(path.name)
            print(f"{head} failed, its file is as it was:\n{outcome}", file=sys.stderr)
        else:
            print(f"{head}: {outcome:.0f} s", flush=True)

    refresh_all(waiting, jobs, tell)
    if failures:
        raise RuntimeError(f"{', '.join(failures)} failed")
    if tree:
        for path, told in alike.compare(waiting, tree, jobs):
            print(f"{path.name} with the code of {options.against}: {told}", flush=True)


def _build(options: argparse.Namespace) -> int:
    from companion.book import build, print_book
    from companion.book.printed import needed_browser

    if options.pdf:
        needed_browser()  # before minutes of building
    status = build(force=options.force)
    if options.pdf:
        print(f"printed: {print_book().as_uri()}")
    return status


if __name__ == "__main__":
    sys.exit(main())
