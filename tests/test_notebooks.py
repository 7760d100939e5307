"""Notebooks as stages: names only, the same bytes twice, a failed one kept."""

import io
import json
import os

import nbformat
import pytest

from linattn import executed, named, notebooks, project

STAGES = [stage.notebook for stage in notebooks.STAGES.values()]


def book(*sources, tags=("parameters",)):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = list(tags)
    return nbformat.v4.new_notebook(cells=cells, metadata={"title": "A title"})


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root of its own, so that drafts and failed copies lie in the test's folder."""
    monkeypatch.setattr(project, "ROOT", tmp_path)
    return tmp_path


def written(root, *sources, **options):
    path = root / "notebook.ipynb"
    nbformat.write(book(*sources, **options), path)
    return path


# The repository's own


def test_sources_are_stripped_and_say_python3(committed):
    sources = {
        path.stem: json.loads(path.read_text())
        for path in (committed / "notebooks").glob("*.ipynb")
    }
    assert {"00_tour", "explore", *STAGES} <= set(sources)
    assert {
        name
        for name, content in sources.items()
        if content["metadata"]["kernelspec"]["name"] != "python3"
    } == set()
    cells = [(name, cell) for name, content in sources.items() for cell in content["cells"]]
    shown = [cell for cell in cells if cell[1].get("outputs") or cell[1].get("execution_count")]
    assert not shown
    assert all(cell["id"] for _, cell in cells)


@pytest.mark.parametrize("stage", notebooks.STAGES)
def test_every_stage_has_a_notebook_that_declares_what_it_takes(stage):
    spec = notebooks.STAGES[stage]
    names = notebooks.declared(notebooks.source(spec.notebook))
    assert "profile" in names
    assert not spec.takes or spec.takes in names


@pytest.mark.parametrize("name", STAGES)
def test_stages_notebooks_are_short_cells_with_a_text_each(name):
    """The library holds the logic: cells are short and define no class."""
    cells = nbformat.read(notebooks.source(name), as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    text = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert text[0].startswith("# ")
    assert len(text) >= 0.5 * len(code)
    assert max(len(source.splitlines()) for source in code) <= 16
    assert not any("import torch.nn" in source or "class " in source for source in code)


# Names


@pytest.mark.parametrize("name", ["studnet", "profil"])
def test_a_name_that_is_not_declared_is_an_error_with_the_nearest(root, name):
    path = written(root, 'student = "clear"\nprofile: str | None = None')
    with pytest.raises(ValueError, match="did you mean"):
        notebooks.run(path, root / "out.ipynb", **{name: "x"})
    assert not (root / "out.ipynb").exists()


def test_without_a_parameters_cell_nothing_is_injected(root):
    with pytest.raises(ValueError, match="no cell tagged 'parameters'"):
        notebooks.declared(written(root, "x = 1", tags=()))


def test_annotated_and_plain_names_are_both_declared(root):
    assert notebooks.declared(written(root, "a = 1\nb: int = 2\nprint(a)")) == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distill"], "--student NAME"),
        (["sample", "--teacher", "class", "--student", "x"], "parameter of 02_sample"),
    ],
    ids=["no name", "a name too many"],
)
def test_the_command_says_what_is_missing_and_exits_1(words, message, capsys):
    assert notebooks.main(words) == 1
    assert message in capsys.readouterr().err


# Normalising


def ran(identity, seconds, address):
    notebook = book("x = 1", "x")
    notebook.cells[0].metadata |= {
        "papermill": {"duration": seconds},
        "execution": {"iopub.status.busy": seconds},
    }
    injected = nbformat.v4.new_code_cell(
        "x = 2", id=identity, metadata={"tags": ["injected-parameters"]}
    )
    notebook.cells.insert(1, injected)
    notebook.metadata["papermill"] = {"start_time": seconds}
    notebook.cells[2].outputs = [
        nbformat.v4.new_output("stream", text=f"took {seconds} s"),
        nbformat.v4.new_output(
            "display_data", {executed.WIDGET: {"model_id": identity}, "text/plain": "0/3"}
        ),
        nbformat.v4.new_output(
            "execute_result", {"text/plain": f"<A at {address}>"}, metadata={"x": seconds}
        ),
    ]
    notebook.cells[0]["id"], notebook.cells[2]["id"] = "a", "b"
    return notebook


def test_runs_that_differ_in_times_ids_and_addresses_are_the_same_bytes():
    first = nbformat.writes(executed.normalise(ran("abc", "1.5", "0x7f01")))
    second = nbformat.writes(executed.normalise(ran("xyz", "2.5", "0x7f02")))
    assert first == second
    assert "A title" in first
    assert "<A>" in first


def test_a_result_that_differs_is_kept():
    notebook = ran("abc", "1.5", "0x7f01")
    notebook.cells[2].outputs[-1].data["text/plain"] = "another"
    assert nbformat.writes(executed.normalise(notebook)) != nbformat.writes(
        executed.normalise(ran("abc", "1.5", "0x7f01"))
    )


# Running, with a real kernel


def test_twice_the_same_bytes_and_the_log_on_the_terminal(root, capsys):
    noisy = "import time, project_marker\nprint('seconds', time.time())"
    path = written(root, 'student = "a"', noisy, "student.upper()")
    (root / "project_marker.py").write_text("")  # this root is what the kernel imports from
    texts = []
    for _ in range(2):
        out = notebooks.run(path, root / "runs" / "one.ipynb", student="clear")
        texts.append(out.read_bytes())
        assert "seconds" in capsys.readouterr().out
    assert texts[0] == texts[1]
    assert b"CLEAR" in texts[0]
    assert b"seconds 1" not in texts[0]


def test_the_kernel_knows_that_it_is_in_the_pipeline_and_the_caller_does_not(root, monkeypatch):
    monkeypatch.delenv(project.PIPELINE, raising=False)
    path = written(
        root, "a = 1", f"import os\nassert os.environ[{project.PIPELINE!r}] == '1'\nos.getcwd()"
    )
    notebooks.run(path, root / "runs" / "one.ipynb")
    assert not project.in_pipeline()


def test_the_kernel_has_our_allocator_settings_unless_the_user_has_others(root, monkeypatch):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "7")
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    lines = "\n".join(
        [
            "import os",
            "assert os.environ['MALLOC_TOP_PAD_'] == '7'",
            "assert os.environ['MALLOC_MMAP_MAX_'] == '0'",
        ]
    )
    notebooks.run(written(root, "a = 1", lines), root / "runs" / "one.ipynb")
    assert "MALLOC_MMAP_MAX_" not in os.environ


def test_a_failed_notebook_is_kept_with_its_log_and_no_result_is_left(root):
    path = written(root, "a = 1", "print('before')", "raise RuntimeError('no such luck')", "a")
    out = root / "runs" / "one.ipynb"
    with pytest.raises(notebooks.Failed, match="runs-one.ipynb has the traceback") as caught:
        notebooks.run(path, out)
    assert str(caught.value.__cause__) == "RuntimeError: no such luck"
    assert not out.exists()
    kept = root / "reports" / "failed" / "runs-one.ipynb"
    assert "no such luck" in kept.read_text()
    assert kept.with_suffix(".log").read_text() == "before\n"
    path.unlink()
    notebooks.run(written(root, "a = 1"), out)  # once it runs, the failed copy is gone
    assert not kept.exists()
    assert not kept.with_suffix(".log").exists()


def test_a_kernel_that_dies_is_a_failure_with_a_reason(root):
    path = written(root, "a = 1", "import os\nos.kill(os.getpid(), 9)")
    with pytest.raises(notebooks.Failed) as caught:
        notebooks.run(path, root / "runs" / "one.ipynb")
    assert "memory" in str(caught.value.__cause__)
    assert (root / "reports" / "failed" / "runs-one.ipynb").exists()


def test_the_log_is_written_as_it_comes(tmp_path):
    terminal = io.StringIO()
    with notebooks.Log(tmp_path / "a.log", terminal) as log:
        log.write("one\n")
        assert terminal.getvalue() == (tmp_path / "a.log").read_text() == "one\n"


def test_another_profile_replaces_nothing_that_the_pipeline_made(monkeypatch, capsys):
    monkeypatch.setattr(named, "profile", lambda: "nano")
    monkeypatch.setattr(notebooks, "run", lambda *args, **names: pytest.fail("it ran"))
    assert notebooks.main(["sample", "--teacher", "class", "--profile", "tiny"]) == 1
    assert "results of profile tiny would replace those of nano" in capsys.readouterr().err
