"""Claims about candidate folders: what is read, what is refused, and that the refusal helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.build.manifest import CandidateError, Manifest, read_candidate, scan_candidates

EXAMPLES = Path(__file__).parents[2] / "examples" / "candidates"


def write(folder: Path, toml: str, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "candidate.toml").write_text(toml)
    for stem, text in ({"attention": "def attention(): ..."} | files).items():
        (folder / f"{stem}.py").write_text(text)
    return folder


def test_a_small_manifest_gets_its_defaults(tmp_path: Path) -> None:
    manifest = read_candidate(write(tmp_path / "mine", 'task = "mha"\nbackend = "torch"'))
    assert (manifest.name, manifest.tasks, manifest.targets) == ("mine", ("mha",), ())
    assert manifest.entry("mha") == "attention.py"
    assert list(manifest.files) == ["attention.py", "candidate.toml"]


def test_each_task_may_have_its_own_entry(tmp_path: Path) -> None:
    toml = 'tasks = ["a", "b"]\nbackend = "triton"\n[entries]\na = "one.py"\nb = "two.py"'
    manifest = read_candidate(write(tmp_path, toml, one="", two=""))
    assert [manifest.entry(task) for task in ("a", "b")] == ["one.py", "two.py"]
    with pytest.raises(CandidateError, match="written for a, b, not c"):
        manifest.entry("c")


@pytest.mark.parametrize(
    ("toml", "key", "says"),
    [
        ('task = "mha"\nbackend = "tritn"', "backend", "did you mean 'triton'"),
        ('task = "mha"\nbackend = "torch"\nentyr = "x.py"', "entyr", "did you mean 'entry'"),
        ('task = "mha"', "backend", "missing"),
        ('backend = "torch"', "task", "either task or tasks"),
        ('task = "mha"\ntasks = ["mha"]\nbackend = "torch"', "task", "either task or tasks"),
        ('tasks = []\nbackend = "torch"', "tasks", "names no task"),
        ('tasks = ["a", "a"]\nbackend = "torch"', "tasks", "twice"),
        ('tasks = "mha"\nbackend = "torch"', "tasks", "list"),
        ('task = "mha"\nbackend = "torch"\ntargets = ["h10"]', "targets", "did you mean 'h100'"),
        ('task = "mha"\nbackend = "torch"\nentry = "attentoin.py"', "entry", "did you mean 'attention.py'"),
        ('task = "mha"\nbackend = "torch"\nentry = "../attention.py"', "entry", "no known Python file"),
        ('tasks = ["a", "b"]\nbackend = "torch"\nentries = { a = "attention.py" }', "entries", "'b'"),
        ('task = "a"\nbackend = "torch"\nentries = { z = "attention.py" }', "entries", "'a'"),
        ('task = "a"\nbackend = "torch"\nname = " "', "name", "empty"),
        ("task = ", "", "is not TOML"),
    ],
)
def test_a_wrong_manifest_is_refused_with_the_file_the_key_and_an_example(
    tmp_path: Path, toml: str, key: str, says: str
) -> None:
    with pytest.raises(CandidateError) as error:
        read_candidate(write(tmp_path, toml))
    assert error.value.key == key
    assert says in error.value.problem
    assert str(tmp_path / "candidate.toml") in str(error.value)
    assert 'backend = "triton"' in str(error.value)


def test_the_hash_follows_content_and_names_but_not_the_place(tmp_path: Path) -> None:
    toml = 'name = "x"\ntask = "mha"\nbackend = "torch"'

    def sha(folder: str, **files: str) -> str:
        return read_candidate(write(tmp_path / folder, toml, **files)).sha256

    assert sha("here") == sha("there")
    assert len({sha("here"), sha("other", attention="pass"), sha("more", extra=""), sha("m", extr="a")}) == 4


def test_the_hash_does_not_confuse_names_with_content(tmp_path: Path) -> None:
    def manifest(**files: bytes) -> Manifest:
        return Manifest("x", ("mha",), "torch", (), tmp_path, {"mha": "a"}, files)

    assert manifest(ab=b"c").sha256 != manifest(a=b"bc").sha256


def test_only_sources_belong_to_a_candidate(tmp_path: Path) -> None:
    folder = write(tmp_path, 'task = "mha"\nbackend = "torch"')
    for name in ("__pycache__/attention.py", ".hidden/x.py", "weights.bin", "sub/kernel.cu"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    assert list(read_candidate(folder).files) == ["attention.py", "candidate.toml", "sub/kernel.cu"]


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.md").write_text("secret")
    folder = write(tmp_path / "mine", 'task = "mha"\nbackend = "torch"')
    (folder / "notes.md").symlink_to(tmp_path / "secret.md")
    with pytest.raises(CandidateError, match="outside"):
        read_candidate(folder)


def test_one_broken_candidate_hides_no_other(tmp_path: Path) -> None:
    write(tmp_path / "a", "backend = 1")
    write(tmp_path / "b", 'task = "mha"\nbackend = "torch"')
    broken, good = scan_candidates(tmp_path)
    assert isinstance(broken, CandidateError)
    assert isinstance(good, Manifest)


def test_a_folder_may_be_a_candidate_itself_or_nothing_at_all(tmp_path: Path) -> None:
    (one,) = scan_candidates(EXAMPLES / "triton_flash")
    assert isinstance(one, Manifest)
    for folder in (tmp_path, tmp_path / "absent"):
        (error,) = scan_candidates(folder)
        assert isinstance(error, CandidateError)


def test_a_backend_decides_where_a_candidate_fits() -> None:
    numba, triton = (read_candidate(EXAMPLES / name) for name in ("numba_cpu", "triton_flash"))
    assert numba.fits("cpu") and not numba.fits("h100")
    assert triton.fits("cpu") and triton.fits("h100")


def test_every_example_is_readable_and_described() -> None:
    found = scan_candidates(EXAMPLES)
    assert {m.name for m in found if isinstance(m, Manifest)} >= {"triton_flash", "numba_cpu", "broken_hang"}
    assert all(isinstance(m, Manifest) and m.description for m in found)
