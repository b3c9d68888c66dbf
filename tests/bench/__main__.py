"""The command: `python -m tests.bench`; the package's docstring says what it does and how."""

import argparse
import dataclasses
import signal
import sys
import tempfile
import threading
from pathlib import Path

from tqdm import tqdm

from tests.bench import charts
from tests.bench.comparison import PARTS, Comparison
from tests.bench.machine import Cores, environment
from tests.bench.peers import CEILING, PEERS, before
from tests.bench.plan import FULL, QUICK
from tests.bench.programs import compile_all
from tests.bench.report import render
from tests.bench.results import Results
from tests.bench.server import Ground, adopt_orphans, end_descendants


def parse() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Compare poold with others, side by side on this machine.")
    parser.add_argument(
        "--quick", action="store_true", help="a first idea in under two minutes: fewer rounds, fewer loads, up to 1,000 held"
    )
    names = [peer.name for peer in PEERS if peer.name != CEILING]
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, default=names, help=f"these servers: {', '.join(names)}")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="these parts only")
    parser.add_argument("--rounds", type=int, metavar="N", help="at most so many rounds of each part")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the Python servers (default: this one)")
    parser.add_argument("--before", metavar="PYTHON", help="also the poold that this other interpreter has: what a change costs")
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="the folder for results.json, report.md and the charts")
    return parser.parse_args()


def measure(arguments: argparse.Namespace, results: Results) -> None:
    """Run the comparison, into `results`, and leave no process behind. Raises RuntimeError where it cannot be run."""
    cores = Cores.choose()
    plan = QUICK if arguments.quick else FULL
    if arguments.rounds:
        plan = dataclasses.replace(plan, rounds=min(arguments.rounds, plan.rounds), held_rounds=min(arguments.rounds, plan.held_rounds))
    chosen = [peer for peer in PEERS if peer.name in (*arguments.only, CEILING)]
    if arguments.before:
        chosen.insert(0, before(arguments.before))
    results.skipped |= {peer.name: reason for peer in chosen if (reason := peer.missing(arguments.python))}
    peers = [peer for peer in chosen if peer.name not in results.skipped]
    results.environment |= environment(arguments.python, cores)
    results.plan |= dataclasses.asdict(plan)
    results.peers |= {peer.name: peer.describe(arguments.python) for peer in peers}
    # tqdm's defaults are a thread and a lock of multiprocessing's; neither is wanted beside a measurement.
    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="bench-programs-") as folder:
        cores.leave_the_server_alone()
        programs = Path(folder)
        compile_all(programs)
        try:
            Comparison(plan, peers, Ground(cores, programs, arguments.python), results).run(arguments.parts)
        finally:
            end_descendants()


def main() -> int:
    """Measure, and write what was measured even if it was cut short."""
    arguments = parse()
    results = Results()
    # Whoever ends this program ends its servers too: as on Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        measure(arguments, results)
        code = 0
    except KeyboardInterrupt:
        results.troubles.append("interrupted")
        code = 130
    except (RuntimeError, OSError) as error:
        print(f"tests.bench: {error}", file=sys.stderr)
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    results.write(arguments.out / "results.json")
    text = render(results)
    (arguments.out / "report.md").write_text(text)
    charts.draw(results, arguments.out)
    print(f"{text}\nWritten to {arguments.out}/: results.json, report.md and the charts.")
    return code


if __name__ == "__main__":
    sys.exit(main())
