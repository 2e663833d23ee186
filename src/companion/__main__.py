"""The command line: list, run, record, sweep, data, refresh, build."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run one command; bad input is one line on stderr and exit status 2."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except (ValueError, FileNotFoundError) as error:
        print(f"companion: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"companion: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("companion: interrupted; nothing half-written was kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="companion", description="Ten papers, every claim checked."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add = commands.add_parser("list", help="the chapters and how their claims came out")
    add.set_defaults(command=_list)

    add = commands.add_parser("run", help="run a chapter with papermill, with your parameters")
    add.set_defaults(command=_run)
    add.add_argument("notebook", help="stem or path")
    add.add_argument("-o", "--output", type=Path, help="default: runs/STEM.ipynb")
    _add_parameters(add)

    add = commands.add_parser(
        "record", help="run a chapter's code without Jupyter and keep its result"
    )
    add.set_defaults(command=_record)
    add.add_argument("notebook", help="stem")
    add.add_argument("--name", required=True, help="name of the record, such as mnist")
    add.add_argument("--out", type=Path, help="folder; default: book/recorded/STEM")
    add.add_argument("--script", action="store_true", help="only print the code cells as a script")
    _add_parameters(add)

    add = commands.add_parser("sweep", help="run a chapter over a grid of parameters, on Dask")
    add.set_defaults(command=_sweep)
    add.add_argument("notebook", help="stem or path")
    add.add_argument(
        "-g", nargs=2, action="append", default=[], metavar=("NAME", "VALUES"),
        help="a parameter and the list of its values, such as '[0, 1, 2]'; all are combined",
    )  # fmt: skip
    _add_parameters(add)
    add.add_argument("--out", type=Path, help="folder of the results; default: runs/STEM")
    add.add_argument("--scheduler", default="", metavar="ADDRESS", help="a Dask scheduler that is there, such as tcp://10.0.0.1:8786; default: a local cluster")  # fmt: skip
    add.add_argument("--workers", type=int, default=0, help="how many runs at once on this machine; default: one a GPU, or one a core")  # fmt: skip
    add.add_argument("--threads", type=int, default=1, help="threads of one run")
    add.add_argument("--time-limit", type=float, default=0, metavar="SECONDS", help="a run that takes longer has failed; default: none")  # fmt: skip
    add.add_argument("--keep", metavar="NAME", help="keep the table in book/recorded/STEM/sweeps for the book")  # fmt: skip
    add.add_argument("--values", action="append", default=[], metavar="PATTERN", help="with --keep: also the recorded lists and mappings of such a name")  # fmt: skip

    add = commands.add_parser("data", help="which data sets are there, and where the others go")
    add.set_defaults(command=_data)
    add.add_argument("--root", default="", help="default: $COMPANION_DATA, else the user's cache")
    add.add_argument("--fetch", metavar="NAME", help="download this set")

    add = commands.add_parser("refresh", help="rerun and store the notebooks whose code changed")
    add.set_defaults(command=_refresh)
    add.add_argument(
        "notebooks", nargs="*", help="these, changed or not; default: all that changed"
    )
    add.add_argument("--jobs", type=int, default=2, help="how many at once")

    add = commands.add_parser("build", help="build the book strictly into _build/html")
    add.set_defaults(command=_build)
    add.add_argument("--force", action="store_true", help="also when nothing changed")
    return parser


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a parameter; the value is read as YAML, so lists and true work",
    )  # fmt: skip
    parser.add_argument(
        "-f", type=Path, metavar="FILE", help="a YAML file of parameters; -p goes before it"
    )


def _parameters(options: argparse.Namespace) -> dict[str, object]:
    """The values of -f and -p, each read by the type that the notebook declares."""
    from companion import given, notebooks

    kinds = notebooks.declared(notebooks.find(options.notebook))
    values = {
        name: given.typed(value, kinds.get(name, object))
        for name, value in (given.read_file(options.f) if options.f else {}).items()
    }
    named = [name for name, _ in options.p]
    for name, text in options.p:
        if named.count(name) > 1:
            raise ValueError(f"-p {name!r}: given twice")
        values[name] = given.argument(text, kinds.get(name, object))
    return values


def _list(_: argparse.Namespace) -> None:
    from collections import Counter

    from companion import notebooks

    for stem in notebooks.stems():
        path = notebooks.find(stem)
        notebook = notebooks.read(path)
        title = next(line for cell in notebook["cells"] for line in cell["source"].splitlines())
        claims = notebooks.recorded_values(notebook).get(f"{stem}.claims", [])
        counts = Counter(claim["verdict"] for claim in claims)
        told = ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items()))
        stale = (
            "" if notebooks.is_current(path) else "  (outputs older than the code: make notebooks)"
        )
        print(f"{stem:24} {title.lstrip('# ')}\n{'':24} {told or 'no claims'}{stale}")


def _run(options: argparse.Namespace) -> None:
    from companion import notebooks

    path = notebooks.find(options.notebook)
    given = _parameters(options)
    notebooks.validate(path, given, here=True)
    output = options.output or Path("runs") / path.name
    _writable("--output", output, "new file")
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_suffix(".part.ipynb")

    import papermill
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            str(path), str(part), parameters=given, cwd=str(path.parent), kernel_name="python3"
        )
    except PapermillExecutionError as error:
        os.replace(part, output)  # with the failing cell and all before it
        raise RuntimeError(f"{error.ename}: {error.evalue} (see {output})") from None
    os.replace(part, output)
    for claim in notebooks.recorded_values(notebooks.read(output)).get(f"{path.stem}.claims", []):
        print(
            f"{claim['id']:5} {claim['verdict']:24} ours {claim['ours']} (paper {claim['paper'] or '-'})"
        )
    print(f"written to {output}")


def _record(options: argparse.Namespace) -> None:
    from companion import notebooks
    from companion.records import FOLDER, record_run

    given = _parameters(options)
    if options.script:  # for another machine
        path = notebooks.find(options.notebook)
        with contextlib.redirect_stdout(sys.stderr):  # what the check says is not of the script
            notebooks.validate(path, given)
        print(notebooks.script(path, given))
        return
    if options.out:
        _writable("--out", options.out, "new folder")
    result = record_run(options.name, options.notebook, given, options.out)
    folder = options.out or FOLDER / options.notebook
    print(f"{result['seconds']} s, kept in {os.path.relpath(folder / (options.name + '.json'))}")


def _sweep(options: argparse.Namespace) -> int:
    from companion import notebooks

    try:
        import distributed  # noqa: F401
        import pandas  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error}; a sweep needs: pip install 'paper-companion[sweep]'") from None
    from companion import sweep

    for name, value, least in (
        ("workers", options.workers, 0),
        ("threads", options.threads, 1),
        ("time-limit", options.time_limit, 0),
    ):
        if value < least:
            raise ValueError(f"--{name} {value}: expected at least {least}")
    if options.values and not options.keep:
        raise ValueError("--values: says what --keep keeps; give --keep NAME as well")
    path = notebooks.find(options.notebook)
    grid = {name: _axis(path, name, text) for name, text in options.g}
    if len(grid) < len(options.g) or not grid:
        raise ValueError("-g: expected at least one parameter, and each only once")
    here = not options.scheduler  # the workers of a cluster have their own devices and data
    runs = sweep.expand(path, grid, _parameters(options), here=here)
    out = options.out or Path("runs") / path.stem
    rows = sweep.sweep(
        path, runs, out,
        scheduler=options.scheduler, workers=options.workers, threads=options.threads,
        time_limit_s=options.time_limit,
    )  # fmt: skip
    failed = [row for row in rows if row["status"] == "failed"]
    for row in failed:
        print(f"failed: {row['given']}: {row['error']}")
    print(
        f"{len(rows) - len(failed)} of {len(rows)} runs done; "
        f"the table is {out / 'table.csv'}, the page {out / 'index.html'}"
    )
    if options.keep:
        asked = ["companion", "sweep", path.stem, "--keep", options.keep]
        asked += [part for name, text in options.g for part in ("-g", name, text)]
        asked += [part for name, text in options.p for part in ("-p", name, text)]
        asked += ["-f", options.f.as_posix()] if options.f else []
        asked += [part for pattern in options.values for part in ("--values", pattern)]
        kept = sweep.keep(options.keep, path, rows, shlex.join(asked), values=options.values)
        print(f"kept in {os.path.relpath(kept)}")
    return 1 if failed else 0


def _axis(path: Path, name: str, text: str) -> object:
    """The list of values of -g, each read by the type that the notebook declares."""
    from companion import given, notebooks

    kind = notebooks.declared(path).get(name, object)
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
    from companion.parameters import OUTSIDE

    if wrong := OUTSIDE[what](str(path)):
        raise ValueError(f"{option} {path}: {wrong}")


def _data(options: argparse.Namespace) -> None:
    from companion.data import data_root
    from companion.data.catalogue import catalogue

    root, sets = data_root(options.root), catalogue()
    if options.fetch:
        if options.fetch not in sets:
            raise ValueError(f"--fetch {options.fetch}: expected one of {', '.join(sets)}")
        source = sets[options.fetch]
        download = getattr(source, "download", None)
        if download is None:
            raise ValueError(f"--fetch {options.fetch}: {source.get}")
        root.mkdir(parents=True, exist_ok=True)
        download(root)
    print(f"data root: {root}")
    for name, source in sets.items():
        there = not source.where or (root / source.where).is_dir()
        print(f"  {name:14} {'there  ' if there else 'missing'}  {source.title}")
        if source.where:
            print(f"  {'':14}          in {source.where}/; terms: {source.licence}")
        if not there:
            print(f"  {'':14}          {source.get}")


def _refresh(options: argparse.Namespace) -> None:
    from companion import notebooks

    if options.notebooks:
        waiting = [notebooks.find(name) for name in options.notebooks]
    else:
        every = [notebooks.find(stem) for stem in notebooks.stems()]
        waiting = [path for path in every if not notebooks.is_current(path)]
        print(f"{len(every) - len(waiting)} notebooks are current, {len(waiting)} to run")
    for path in waiting:
        notebooks.write_preset_files(path)
    failures = []
    with ThreadPoolExecutor(max(1, options.jobs)) as pool:
        running = {pool.submit(notebooks.refresh, path): path for path in waiting}
        for number, done in enumerate(as_completed(running), 1):
            name = running[done].name
            try:
                print(f"[{number}/{len(waiting)}] {name}: {done.result():.0f} s", flush=True)
            except Exception as error:
                failures.append(name)
                print(
                    f"[{number}/{len(waiting)}] {name} failed, its file is as it was:\n{error}",
                    file=sys.stderr,
                )
    if failures:
        raise RuntimeError(f"{', '.join(failures)} failed")


def _build(options: argparse.Namespace) -> int:
    from companion.book import build

    return build(force=options.force)


if __name__ == "__main__":
    sys.exit(main())
