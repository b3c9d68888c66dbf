"""The settings file: where it is found, how it is read; and the place of the control socket."""

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from poold.errors import ConfigError, Problem
from poold.settings import file as subject
from poold.settings.config import Config
from poold.settings.file import control_candidates, control_path, find, make_control_folder
from poold.settings.judge import load, read
from tests.needs import needs_root

REPOSITORY = Path(__file__).parent.parent
FILE = Path("/etc/poold.toml")


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no system-wide file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subject, "SYSTEM_FILE", tmp_path / "etc" / "poold.toml")
    return tmp_path


def test_the_places_of_the_file(away: Path) -> None:
    """-c comes before $POOLD_CONFIG, that before ./poold.toml, that before the system's file, that before the defaults."""
    assert find(None, {}) == (None, b"", ())
    (away / "etc").mkdir()
    (away / "etc" / "poold.toml").write_text("# system")
    assert (away / "etc" / "poold.toml", b"# system", ()) == find(None, {"POOLD_CONFIG": ""})
    (away / "poold.toml").write_text("# local")
    assert (away / "poold.toml", b"# local", ()) == find(None, {})
    (away / "a.toml").write_text("# environment")
    assert (away / "a.toml", b"# environment", ()) == find(None, {"POOLD_CONFIG": "a.toml"})
    (away / "b.toml").write_text("# option")
    assert (away / "b.toml", b"# option", ()) == find("b.toml", {"POOLD_CONFIG": "a.toml"})


@needs_root
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "poold.toml").chmod(0o666), "others may write to {}/poold.toml"),
        (lambda folder: (folder / "poold.toml").chmod(0o664), "others may write to {}/poold.toml"),
        (lambda folder: os.chown(folder / "poold.toml", 12345, 0), "{}/poold.toml does not belong to root"),
        (lambda folder: folder.chmod(0o777), "others may write to {}"),
        (lambda folder: os.chown(folder, 12345, 0), "{} does not belong to root"),
    ],
)
def test_root_passes_over_a_file_that_others_may_write(away: Path, spoil: Callable[[Path], None], reason: str) -> None:
    """Root reads a ./poold.toml that another user could have written or put there only if it is named, and either way says so."""
    (away / "poold.toml").write_text("")
    (away / "etc").mkdir()
    (away / "etc" / "poold.toml").write_text("# system")
    spoil(away)
    file, text, warnings = find(None, {})
    assert (away / "etc" / "poold.toml", b"# system") == (file, text)
    assert (f"./poold.toml is passed over because {reason.format(away)}; name it with -c to use it all the same",) == warnings
    caution = f"{reason.format(away)}: whoever writes it decides what poold runs as root"
    assert (away / "poold.toml", b"", (caution,)) == find("poold.toml", {})


@needs_root
def test_root_looks_through_a_link(away: Path) -> None:
    """A ./poold.toml that leads to another user's file is that user's."""
    (away / "home").mkdir()
    (away / "home" / "x.toml").write_text("")
    (away / "poold.toml").symlink_to("home/x.toml")
    assert find(None, {})[0] == away / "poold.toml"
    os.chown(away / "home", 12345, 0)
    assert find(None, {})[0] is None


@needs_root
@pytest.mark.parametrize("way", ["link", "folder above", "link in a shared folder"])
def test_everybody_on_the_way_has_a_say(away: Path, way: str) -> None:
    """Who may write to any folder in which a name of the path is looked up decides what is read, also where the file is root's."""
    (away / "safe").mkdir()
    (away / "safe" / "poold.toml").write_text("# root's")
    (away / "home").mkdir()
    match way:
        case "link":
            (away / "home" / "x.toml").symlink_to(away / "safe" / "poold.toml")
            (away / "poold.toml").symlink_to("home/x.toml")
            os.chown(away / "home", 12345, 0)
            named, who = "poold.toml", f"{away}/home does not belong to root"
        case "folder above":
            (away / "home" / "conf").mkdir()
            (away / "home" / "conf" / "poold.toml").write_text("# root's")
            (away / "home").chmod(0o777)
            named, who = "home/conf/poold.toml", f"others may write to {away}/home"
        case _:
            (away / "home").chmod(0o1777)
            (away / "home" / "x.toml").symlink_to(away / "safe" / "poold.toml")
            os.chown(away / "home" / "x.toml", 12345, 0, follow_symlinks=False)
            named, who = "home/x.toml", f"{away}/home/x.toml does not belong to root"
    assert (away / named, b"# root's", (f"{who}: whoever writes it decides what poold runs as root",)) == find(named, {})
    if way == "link":
        assert find(None, {})[0] is None


@needs_root
def test_the_file_that_was_looked_at_is_the_one_that_is_read(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that takes the place of root's after the look is not the one that is read."""
    (away / "poold.toml").write_text("# root's")
    (away / "other.toml").write_text("# another's")
    os.chown(away / "other.toml", 12345, 0)
    look = subject._follow

    def quicker(path: Path) -> tuple[int, str]:
        found = look(path)
        (away / "other.toml").rename(away / "poold.toml")
        return found

    monkeypatch.setattr(subject, "_follow", quicker)
    assert (away / "poold.toml", b"# root's", ()) == find(None, {})
    assert (away / "poold.toml").stat().st_uid == 12345


def test_a_path_that_leads_round_in_a_circle(tmp_path: Path) -> None:
    """Links that lead to each other are no file, however many there are."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ConfigError) as caught:
        find(str(tmp_path / "a"), {})
    assert caught.value.problems == [Problem("", "cannot be read: too many levels of symbolic links")]


def test_a_file_that_has_no_path(tmp_path: Path) -> None:
    """What /dev/stdin and its like lead to is read, also when no path leads to it any more."""
    (tmp_path / "x.toml").write_text("# here")
    with (tmp_path / "x.toml").open() as opened:
        (tmp_path / "x.toml").unlink()
        assert find(f"/proc/self/fd/{opened.fileno()}", {})[1] == b"# here"


def test_parents_and_folders_behind_links(tmp_path: Path) -> None:
    """A name ".." is the parent of the folder that a link leads to, as for the kernel."""
    (tmp_path / "far" / "folder").mkdir(parents=True)
    (tmp_path / "far" / "x.toml").write_text("# far")
    (tmp_path / "x.toml").write_text("# near")
    (tmp_path / "link").symlink_to("far/folder")
    assert find(f"{tmp_path}/link/../x.toml", {})[1] == b"# far"


def test_another_user_reads_his_file(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not root may share a file with whom he likes."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    (away / "poold.toml").write_text("")
    (away / "poold.toml").chmod(0o666)
    assert (away / "poold.toml", b"", ()) == find(None, {})


@needs_root
def test_a_sticky_folder_is_safe(away: Path) -> None:
    """In a folder like /tmp nobody can replace root's file."""
    (away / "poold.toml").write_text("")
    away.chmod(0o1777)
    assert (away / "poold.toml", b"", ()) == find(None, {})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.absolute, "cannot be read: no such file or directory"),
        (lambda file: file.mkdir(), "cannot be read: it is a folder, not a regular file"),
        (os.mkfifo, "cannot be read: it is a FIFO, not a regular file"),
        (lambda file: file.symlink_to("/dev/zero"), "cannot be read: it is a device, not a regular file"),
        (lambda file: file.symlink_to("nowhere"), "cannot be read: no such file or directory"),
        (lambda file: file.write_bytes(b"#" * (1 << 20) + b"\n"), "is too large: settings have at most 1 MiB"),
    ],
)
def test_what_is_no_file_to_read(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    """A file that is missing, special or huge is refused at once; a FIFO does not make poold wait."""
    file = tmp_path / "x.toml"
    make(file)
    for option, environ in ((str(file), {}), (None, {"POOLD_CONFIG": str(file)})):
        with pytest.raises(ConfigError) as caught:
            read(option, environ)
        assert ([Problem("", message)], str(file)) == (caught.value.problems, caught.value.file)


def test_a_dangling_local_file_is_not_passed_over(away: Path) -> None:
    """A ./poold.toml that leads nowhere is a mistake to report, not one to hide by reading another file."""
    (away / "poold.toml").symlink_to("nowhere")
    with pytest.raises(ConfigError):
        find(None, {})


def test_the_reference_runs_here(away: Path) -> None:
    """The repository's poold.toml lacks nothing on a machine like this one."""
    assert Config().pool == read(str(REPOSITORY / "poold.toml"), {}).config.pool
    assert Config().log == read(None, {}).config.log


def test_reading_leaves_no_descriptor_open(tmp_path: Path) -> None:
    """Whether a file can be read or not, its descriptor is closed."""
    (tmp_path / "a.toml").write_text("")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("a.toml", "missing", "."):
        try:
            find(str(tmp_path / name), {})
        except ConfigError:
            continue
    assert before == len(list(Path("/proc/self/fd").iterdir()))


def test_a_file_of_the_greatest_size_is_read(tmp_path: Path) -> None:
    """A file of 1 MiB is whole in what is returned."""
    file = tmp_path / "x.toml"
    served = b"[server]\nhandler = 'mypackage.chat:serve'\n"
    file.write_bytes(served + b"#" * ((1 << 20) - len(served)))
    assert (file, file.read_bytes()) == find(str(file), {})[:2]
    assert file == read(str(file), {}).file


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Folders for each of the places, none of which has been made yet."""
    monkeypatch.setattr(subject, "SYSTEM_CONTROL_FOLDER", tmp_path / "run" / "poold")
    monkeypatch.setattr(subject, "TEMPORARY_FOLDER", tmp_path)
    return {
        "runtime": tmp_path / "runtime",
        "session": tmp_path / "session" / "poold",
        "system": tmp_path / "run" / "poold",
        "private": tmp_path / f"poold-{os.geteuid()}",
    }


def test_the_candidates_in_their_order(places: Mapping[str, Path]) -> None:
    """$RUNTIME_DIRECTORY's first folder comes first, then the user's session, the system, and a private folder."""
    session = str(places["session"].parent)
    every = [place / "control.sock" for place in places.values()]
    assert every == control_candidates({"RUNTIME_DIRECTORY": f"{places['runtime']}:/x", "XDG_RUNTIME_DIR": session}, os.geteuid())
    assert every[1:] == control_candidates({"RUNTIME_DIRECTORY": "", "XDG_RUNTIME_DIR": session}, os.geteuid())
    assert every[2:] == control_candidates({"RUNTIME_DIRECTORY": "relative", "XDG_RUNTIME_DIR": ""}, os.geteuid())


def test_the_first_usable_candidate_is_taken(places: Mapping[str, Path]) -> None:
    """The daemon binds in the first folder that is there or can be made, and makes it for itself alone."""
    environ = {"RUNTIME_DIRECTORY": str(places["runtime"] / "no"), "XDG_RUNTIME_DIR": str(places["session"].parent)}
    for name in ("private", "system", "session"):
        if name != "private":
            places[name].parent.mkdir()
        place = control_path(None, environ, os.geteuid())
        assert places[name] / "control.sock" == place
        make_control_folder(place, os.geteuid())
        make_control_folder(place, os.geteuid())
        assert places[name].stat().st_mode & 0o777 == 0o700
    assert Path("/x/y") == control_path(load(b"[control]\nsocket = '/x/y'", FILE).control.socket, environ, os.geteuid())


def mkdir_for_another(folder: Path) -> None:
    """Make a folder that belongs to another user."""
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder.mkdir(), folder.chmod(0o770)),
        lambda folder: folder.symlink_to(folder.parent),
        lambda folder: folder.touch(mode=0o600),
        pytest.param(mkdir_for_another, marks=needs_root),
    ],
)
def test_a_folder_laid_by_somebody_else_is_not_used(places: Mapping[str, Path], spoil: Callable[[Path], object]) -> None:
    """In the system's temporary folder only a private folder of the user's own will do, whoever was there first."""
    place = control_path(None, {}, os.geteuid())
    assert places["private"] == place.parent
    spoil(places["private"])
    place.parent.parent.chmod(0o1777)
    with pytest.raises(PermissionError):
        make_control_folder(place, os.geteuid())
    with pytest.raises(ConfigError) as caught:
        control_path(None, {}, os.geteuid())
    assert [problem.key for problem in caught.value.problems] == ["control.socket"]


@needs_root
def test_a_private_folder_of_somebody_else_is_not_asked(places: Mapping[str, Path]) -> None:
    """A command does not ask in a private folder that somebody else has laid: he would answer."""
    assert control_candidates({}, os.geteuid())[-1].parent == places["private"]
    mkdir_for_another(places["private"])
    assert [place.parent for place in control_candidates({}, os.geteuid())] == [places["system"]]


def test_no_temporary_file_is_made(places: Mapping[str, Path], tmp_path: Path) -> None:
    """To find the places nothing is tried out; $TMPDIR counts, unless it is relative, and need not be there."""
    before = set(tmp_path.rglob("*"))
    assert control_candidates({"TMPDIR": "/nowhere"}, 7)[-1] == Path("/nowhere/poold-7/control.sock")
    assert control_candidates({"TMPDIR": "nowhere"}, os.geteuid())[-1].parent == places["private"]
    assert set(tmp_path.rglob("*")) == before


def test_a_place_with_too_long_a_path_is_passed_over(places: Mapping[str, Path]) -> None:
    """A candidate that the kernel would refuse for its length is not taken, nor one below a file."""
    deep = places["runtime"].joinpath("x" * 100)
    deep.mkdir(parents=True)
    (places["runtime"] / "file").touch()
    for runtime in (deep, places["runtime"] / "file" / "x"):
        assert places["private"] / "control.sock" == control_path(None, {"RUNTIME_DIRECTORY": str(runtime)}, os.geteuid())


def test_only_the_settings_are_paid_for() -> None:
    """What only a mistake or `poold check --print` needs is not imported with the settings."""
    program = "import sys, poold.settings.judge; print([name for name in ('difflib', 'tomli_w', 'logging') if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY, timeout=60)
    assert ast.literal_eval(finished.stdout) == []
