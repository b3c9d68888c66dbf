"""The state document: what is written is read back, and nothing that is odd gets through."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poold import scoreboard as board
from poold.childrows import AUXILIARY_SLOTS
from poold.master.document import tally
from poold.master.rehearsal import obstacles, verdict
from poold.master.upgrade import state
from poold.master.upgrade.state import StateError
from poold.scoreboard import CELLS, Counters
from poold.settings import config, judge
from poold.words import LISTENERS_MAX, Kind, State

# As the first version of this format wrote it. It is never written anew: a later version must still read it.
RECORDED = (Path(__file__).parent / "state" / "format-1.json").read_bytes()


def recorded() -> dict[str, Any]:
    """Return the recorded document, to be changed."""
    document: dict[str, Any] = json.loads(RECORDED)
    return document


def unreadable(document: object) -> str:
    """Return why a document is not read."""
    with pytest.raises(StateError) as caught:
        state.read(json.dumps(document).encode())
    return str(caught.value)


def test_recorded_document_is_read() -> None:
    """What an earlier version wrote is read, and written back with the same meaning."""
    found = state.read(RECORDED)
    assert found.generation == 2
    assert {child.kind for child in found.children} == {Kind.WORKER, Kind.MOLD, Kind.EXPORTER}
    assert {child.session.id for child in found.children if child.session is not None} == {1, 2}
    assert state.read(state.write(found)) == found


def test_unknown_fields_are_ignored_and_missing_ones_have_defaults() -> None:
    """A neighbouring version may say more, or less, in the same format."""
    document = recorded()
    document["invented"] = {"later": [1, 2, 3]}
    document["children"][0]["mood"] = "good"
    for key in ("lingering", "requester", "passed"):
        del document[key]
    document["listeners"] = [each for each in document["listeners"] if not each["socket"]["lent"]]
    found = state.read(json.dumps(document).encode())
    assert (found.lingering, found.requester, found.passed) == ((), None, ())


def test_another_format_is_refused() -> None:
    """What a newer format says is not guessed at."""
    document = recorded()
    document["format"] = 2
    assert "has format 2" in unreadable(document)
    del document["format"]
    assert "has no format" in unreadable(document)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}', b'{"format": 1e999}'])
def test_what_is_no_document(data: bytes) -> None:
    """Nothing but a whole document is read."""
    with pytest.raises(StateError):
        state.read(data)


ODD: list[tuple[tuple[str | int, ...], object]] = [
    (("children", 0, "pid"), 0),
    (("children", 0, "pid"), 1),
    (("children", 0, "pid"), -1),
    (("children", 0, "pid"), 1 << 40),
    (("children", 0, "pid"), "12"),
    (("children", 0, "pid"), True),
    (("children", 0, "pid"), 12.5),
    (("children", 0, "slot"), 1 << 20),
    (("children", 0, "slot"), -1),
    (("children", 0, "kind"), "wizard"),
    (("children", 0, "kind"), ["worker"]),
    (("children", 0, "state"), "asleep"),
    (("children", 0, "channel"), 2),
    (("children", 0, "claimed_at"), float("nan")),
    (("children", 0, "claimed_at"), float("inf")),
    (("children", 0, "claimed_at"), 10**400),
    (("children",), {}),
    (("activity",), 1),
    (("generation",), 0),
    (("last_session",), -1),
    (("limits",), [1024]),
    (("listeners", 0, "socket", "fd"), 0),
    (("listeners", 0, "socket", "file"), [1, 2, 3]),
    (("listeners", 0, "socket", "lent"), None),
    (("tally", "counts", "unknown_reaped"), -1),
    (("tally", "counts", "unknown_reaped"), None),
    (("control",), None),
    (("people",), []),
]


@pytest.mark.parametrize(("path", "value"), ODD)
def test_odd_values_are_refused(path: tuple[str | int, ...], value: object) -> None:
    """A number that cannot be, or a word that is not known, makes the document unreadable, and the reason says where it is."""
    document = recorded()
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert str(path[0]) in unreadable(document) or "cannot be" in unreadable(document) or "not a" in unreadable(document)


@pytest.mark.parametrize("what", ["slot", "pid", "channel"])
def test_twice_is_refused(what: str) -> None:
    """Two children are never in the same slot, and nothing is the same descriptor."""
    document = recorded()
    workers = [child for child in document["children"] if child["kind"] == "worker"]
    with_channel = [child for child in document["children"] if child["channel"] is not None]
    first, second = (with_channel if what == "channel" else workers)[:2]
    second[what] = first[what]
    assert "there twice" in unreadable(document)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.data(), json_values)
def test_any_change_is_read_or_refused(data: st.DataObject, value: object) -> None:
    """Whatever is in place of one value, reading ends in a document or in a StateError."""
    document = recorded()
    place: Any = document
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    try:
        found = state.read(json.dumps(document).encode())
    except StateError:
        return
    assert all(child.pid > 1 for child in found.children)
    assert all(fd > 2 for fd in found.descriptors())


def places(document: Any, above: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the way to every value in a document."""
    found = [above] if above else []
    for key in document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ():
        found += places(document[key], (*above, key))
    return found


PLACES = places(recorded())
# What is hostile where a number, a word or a part is expected.
hostile = (
    st.sampled_from(
        [0, 1, 2, 3, -1, 1 << 31, 1 << 32, 1 << 64, 10**400, -0.0, float("nan"), float("inf"), "", "0", "\0", "\ud800", None, True]
    )
    | st.sampled_from(PLACES).map(lambda place: at(recorded(), place))
    | json_values
)


def at(document: Any, place: tuple[str | int, ...]) -> Any:
    """Return what is in a place."""
    for step in place:
        document = document[step]
    return document


@given(st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(["put", "remove", "twice"]), hostile), min_size=1, max_size=6))
def test_any_changes_are_read_or_refused(changes: list[tuple[tuple[str | int, ...], str, Any]]) -> None:
    """Whatever is changed, taken away or there twice, in several places at once, reading ends in a document or in a StateError."""
    document = recorded()
    for place, what, value in changes:
        try:
            where = at(document, place[:-1])
            if what == "put":
                where[place[-1]] = value
            elif what == "remove":
                del where[place[-1]]
            elif isinstance(where, list):
                where.append(where[int(place[-1])])
        except (LookupError, TypeError):
            # An earlier change has taken the place away.
            continue
    try:
        found = state.read(json.dumps(document).encode())
    except StateError:
        return
    # What is read can be relied on by whoever takes over: no number that could reach somebody else, and none twice.
    pids = [child.pid for child in found.children]
    assert all(pid > 1 for pid in pids)
    assert len(set(pids)) == len(pids)
    assert all(2 < fd < 1 << 31 for fd in found.descriptors())
    assert len({child.slot for child in found.children}) == len(found.children)
    assert state.read(state.write(found)) == found


@given(st.integers(min_value=0, max_value=len(RECORDED) - 1), st.binary(max_size=4))
def test_any_damage_is_read_or_refused(at: int, junk: bytes) -> None:
    """Whatever bytes are overwritten or cut off, reading ends in a document or in a StateError."""
    for damaged in (RECORDED[:at], RECORDED[:at] + junk + RECORDED[at + len(junk) :]):
        try:
            state.read(damaged)
        except StateError:
            continue


@given(
    st.lists(st.integers(min_value=0, max_value=(1 << 62) - 1), min_size=8, max_size=8),
    st.lists(st.text(min_size=1, max_size=20), unique=True),
)
def test_counters_go_on(numbers: list[int], names: list[str]) -> None:
    """Every counter and every label that one program had is the next one's."""
    before, after = Counters(), Counters()
    try:
        for index, name in enumerate(names[:LISTENERS_MAX]):
            before.cells[board.ACCEPTED[before.listener(name)]] = numbers[index % 8]
        for cell in (*board.REFUSED.values(), *board.ENDED.values(), *board.SPAWNED.values(), board.MOLD_STARTS, board.PROCESS_STARTED):
            before.cells[cell] = numbers[cell % 8]
        for value in (0.001, 1.0, 1e9):
            before.observe(board.SESSION_SECONDS, value)
        tally.load_tally(after, tally.read_tally(before))
        assert after.names == before.names
        assert after.cells == before.cells
        assert len(after.cells) == CELLS
    finally:
        before.close()
        after.close()


def test_buckets_that_have_changed() -> None:
    """Counts of a bucket that is no more are in the next wider one; their number and their sum stay."""
    counters = Counters()
    part = tally.HistogramPart(bounds=(0.02, 7.0, 1e9), counts=(3, 2, 1, 4), total=5_000_000)
    tally.load_tally(counters, tally.TallyPart(histograms={"session_seconds": part, "forgotten": part}))
    where = board.SESSION_SECONDS
    counts = counters.cells[where.first : where.first + len(where.buckets) + 1]
    assert (sum(counts), counts[where.buckets.index(0.1)], counts[where.buckets.index(15.0)], counts[-1]) == (10, 3, 2, 5)
    assert counters.cells[where.total] == 5_000_000
    counters.close()


def settings_of(document: dict[str, Any]) -> config.Config:
    """Return settings with which the recorded document could go on."""
    listeners = "".join(
        f'[[listener]]\naddress = "{each["address"]}"\nname = "{each["name"]}"\n' for each in document["listeners"] if not each["leaving"]
    )
    text = f'[metrics]\nlisten = "{document["metrics_address"]}"\n[control]\nsocket = "{document["control_setting"]}"\n{listeners}'
    return judge.load(text.encode(), None)


def test_recorded_settings_are_read() -> None:
    """The settings that an earlier version wrote down are read, and written back as they were."""
    document = recorded()["settings"]
    found = config.of_document(document)
    assert (found.timeouts.import_, found.listeners[1].address.scheme, found.log.level) == (60.0, "unix", config.LogLevel.DEBUG)
    assert config.document(found) == document


@pytest.mark.parametrize("table", ["server", "pool", "timeouts", "metrics", "control", "log"])
def test_settings_of_another_version_are_refused(table: str) -> None:
    """A key that is missing, unknown or of another type makes the settings another version's: nothing is applied by halves."""
    for change in ("missing", "unknown", "odd"):
        document = recorded()["settings"]
        key = next(iter(document[table]))
        if change == "missing":
            del document[table][key]
        else:
            document[table]["invented" if change == "unknown" else key] = {"later": 1}
        with pytest.raises(ValueError, match=r".+"):
            config.of_document(document)


def test_obstacles() -> None:
    """Settings that fit have none; each listener that is missing or too many is named, and so are other addresses."""
    document = recorded()
    settings = settings_of(document)
    assert list(obstacles(state.read(RECORDED), settings)) == []
    [dropped, *_] = document["listeners"]
    dropped["address"] = "tcp://127.0.0.1:1"
    document["metrics_address"] = None
    document["control_setting"] = "/elsewhere"
    found = [str(problem) for problem in obstacles(state.read(json.dumps(document).encode()), settings)]
    for problem, word in zip(found, ("is not open yet", "is open;", "metrics.listen", "control.socket"), strict=True):
        assert word in problem


def test_names_are_bounded() -> None:
    """More listeners' names than one life has room for are an obstacle."""
    document = recorded()
    document["tally"]["listeners"] = [f"n{number}" for number in range(LISTENERS_MAX)]
    found = obstacles(state.read(json.dumps(document).encode()), settings_of(document))
    assert ["listener.name" in str(problem) for problem in found] == [True]


def test_trial_of_an_unreadable_state() -> None:
    """A state that the new code does not understand refuses the upgrade."""
    found = verdict(b"", None, b'{"format": 99}')
    assert "understands format 1" in found["problems"][0]["message"]


def test_a_slot_is_one_of_its_kind() -> None:
    """A worker is never in a slot for others, and others never have sessions."""
    document = recorded()
    for child in document["children"]:
        child["slot"] = (child["slot"] + AUXILIARY_SLOTS) % (2 * AUXILIARY_SLOTS)
    assert "slot" in unreadable(document)
    document = recorded()
    serving = next(child for child in document["children"] if child["session"])
    serving["state"] = State.SPARE
    assert "has no session" in unreadable(document)
